"""Measures configurations in short, alternating runs, and combines the changes that made training faster."""
