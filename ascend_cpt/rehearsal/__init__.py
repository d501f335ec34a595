"""Rehearses a cluster job on one machine: the user's configuration, shrunk, is really run on emulated NPUs."""
