"""What a run is at a step, and which step to continue from."""
