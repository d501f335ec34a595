"""The run state saved with checkpoints, and the choice of the checkpoint to resume from."""
