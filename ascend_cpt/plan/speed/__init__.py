"""Training step time: the model, its efficiencies, and their fit to measured speeds."""
