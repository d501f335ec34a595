"""Hugging Face <-> MindFormers weights: one mapping table per model family, the reverse derived from it."""
