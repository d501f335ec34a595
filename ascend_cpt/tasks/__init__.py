"""Evaluation tasks: items in files, their requests to the network, and scores. Plain Python and NumPy."""
