"""Extends a tokenizer: learns new pieces on a corpus, after all merges of the old tokenizer."""
