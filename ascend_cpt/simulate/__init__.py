"""Compiles a run's ranks on MindSpore's simulated device, without NPUs."""
