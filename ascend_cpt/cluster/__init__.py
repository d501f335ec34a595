"""Launches a job with msrun, connects its processes, and checks nodes."""
