"""Mixture search without training: blends to try, laws of the loss in the shares, frontier and bands. NumPy only."""
