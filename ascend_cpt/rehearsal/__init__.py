"""Rehearses a cluster job on one machine by running a scaled-down copy of the configuration on emulated NPUs."""
