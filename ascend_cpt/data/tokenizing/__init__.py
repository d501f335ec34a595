"""Tokenizers: their files, reference engines, and a fast engine that is used if it produces the same ids."""
