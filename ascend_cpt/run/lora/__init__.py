"""Runs that train low-rank adapters: the weights under the adapters, and their checkpoints."""
