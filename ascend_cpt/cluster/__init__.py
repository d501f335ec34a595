"""Launching a job with msrun, communication between its processes, and checks of a node."""
