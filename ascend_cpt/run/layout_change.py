"""Decides whether a run may continue from a checkpoint that was saved in another parallel layout (`--reshard`)."""

from __future__ import annotations

from ascend_cpt.checkpoint.fingerprint import describe_layout_change
from ascend_cpt.checkpoint.locate import Checkpoint, find_missing_ranks, list_complete
from ascend_cpt.cluster.job.channel import JobChannel
from ascend_cpt.config.parallel_layout import uses_cpu
from ascend_cpt.errors import CheckpointError
from ascend_cpt.run.resolved_run import ResolvedRun

GATHER_FIRST = (
    "without shared storage, combine the files of all nodes with tools/gather_checkpoint.py, copy the folder to every "
    "node, and pass its path with --resume_training"
)


def check_layout(
    run: ResolvedRun, chosen: Checkpoint, *, reshard: bool, shared: bool = True, dry: bool = False
) -> tuple[str, ...]:
    """Return a line that describes how the layout has changed since the checkpoint was saved, if it has.

    Args:
        run: The run to continue.
        chosen: The checkpoint to continue from.
        reshard: Whether the layout may differ. On a CPU, it always may.
        shared: Whether every node sees the files of all ranks.
        dry: Note a difference that is not allowed instead of failing.

    Raises:
        CheckpointError: when the layout differs without `reshard`, or this node lacks files of other ranks.
    """
    changes = _list_changes(run, chosen)
    if not changes:
        return ()
    step, what = chosen.state.step, "; ".join(changes)
    if uses_cpu(run.config):  # every process loads the whole model, in any layout
        reshard = True
    if not reshard and dry:
        return (f"step {step} was saved with another parallel layout ({what}); pass --reshard to continue from it",)
    if not reshard:
        raise CheckpointError(
            f"{chosen.folder}: saved with another parallel layout ({what}); use that layout, or pass --reshard to "
            "continue with the new one (the losses are the same up to rounding)"
        )
    _, missing = find_missing_ranks(chosen.state.files)
    if missing and not shared:
        raise CheckpointError(
            f"{chosen.folder}: --reshard needs the files of all ranks, but those of rank {missing[0]} are not on this "
            f"node; {GATHER_FIRST}"
        )
    return (f"new parallel layout from step {step} on: {what}",)


def check_common_step(run: ResolvedRun, channel: JobChannel) -> None:
    """Check that no node has a checkpoint. All processes of a job without shared storage call this.

    Call this if no step is complete on every node, for example because a node was added.

    Raises:
        CheckpointError: when a node has one. The run would otherwise start again from its initial weights.
    """
    own = max(list_complete(run.checkpoint_root)[0], default=0)
    if newest := max(channel.all_gather("newest steps", own)):
        raise CheckpointError(f"{run.run_dir}: --reshard: step {newest} is not complete on every node; {GATHER_FIRST}")


def _list_changes(run: ResolvedRun, chosen: Checkpoint) -> list[str]:
    state = chosen.state
    if state.layout:
        return describe_layout_change(state.layout, run.describe_layout())
    # Earlier versions did not record the layout. On a CPU, one process saves the whole model.
    num_ranks, _ = find_missing_ranks(state.files)
    if uses_cpu(run.config) or num_ranks in (0, run.layout.world_size):
        return []
    return [f"devices: {num_ranks} → {run.layout.world_size}"]
