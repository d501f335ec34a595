"""Measures configurations in short runs that take turns, and combines the changes that made training faster."""
