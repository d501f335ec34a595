"""Tokenizers: read from their files, with a reference engine each and a fast one that has to prove itself."""
