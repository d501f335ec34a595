"""Preprocessing: reads text, tokenizes it and packs it into datasets."""
