"""Sweeps of merge coefficients: the command line, the results, their table and picture, and the card of a merge."""
