"""Preprocessing: read, tokenize and pack text into datasets."""
