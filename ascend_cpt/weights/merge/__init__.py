"""Merges Hugging Face models: linear, slerp and task arithmetic."""
