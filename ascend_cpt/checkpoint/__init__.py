"""Run state saved with checkpoints, and selection of the checkpoint to resume from."""
