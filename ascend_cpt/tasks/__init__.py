"""Evaluation tasks: items in files, their requests to the network, and scores, in plain Python and NumPy."""
