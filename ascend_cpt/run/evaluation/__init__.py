"""Checkpoint evaluation: chooses the sets, tasks, model and layout."""
