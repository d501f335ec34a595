"""Rehearses a cluster job on one machine: runs a scaled-down copy of the user's configuration on emulated NPUs."""
