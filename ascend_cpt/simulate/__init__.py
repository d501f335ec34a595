"""Compiles ranks of a run on MindSpore's simulated device, without NPUs."""
