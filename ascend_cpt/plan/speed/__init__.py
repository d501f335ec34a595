"""The time of a training step: model, efficiencies and their fit to measured speeds."""
