"""Conversion of weights between Hugging Face and MindFormers."""
