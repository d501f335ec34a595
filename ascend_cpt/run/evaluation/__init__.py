"""Evaluation of checkpoints: which sets and tasks, with which model and layout."""
