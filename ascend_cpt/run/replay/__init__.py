"""Replay data written by the base model itself: generation on the CPU, outputs of vLLM, filters, and the text file."""
