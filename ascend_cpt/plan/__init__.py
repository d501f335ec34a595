"""Checks of a parallel layout before a cluster is booked."""
