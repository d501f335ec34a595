"""Reads documents from input files."""
