"""Disk space of a run's checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ascend_cpt.plan.case import FLOAT32_BYTES
from ascend_cpt.plan.memory import ADAM_STATES


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """A run's checkpoints, of which the newest `num_kept` and `num_lasting` permanent ones are kept."""

    num_parameters: int
    """Saved parameters: those of the model, or of the adapters."""
    param_bytes: int
    """Size of one of them."""
    num_trained: int
    """Parameters with optimizer states."""
    num_written: int
    num_kept: int
    num_lasting: int = 0
    num_best: int = 0
    """Checkpoints kept by `keep_best`."""
    export_bytes: int = 0
    """Size of the export at the end; 0 without one."""

    @property
    def num_bytes(self) -> int:
        """Size of one checkpoint: weights and optimizer states."""
        return self.num_parameters * self.param_bytes + self.num_trained * ADAM_STATES * FLOAT32_BYTES

    @property
    def num_held(self) -> int:
        """Maximum number on disk, where a new checkpoint is written before an old one is removed."""
        return min(self.num_written, self.num_kept + 1 + self.num_lasting + self.num_best)

    @property
    def disk_bytes(self) -> int:
        """Maximum disk space, with the export."""
        return self.num_bytes * self.num_held + self.export_bytes


def plan_checkpoints(
    num_parameters: int,
    param_bytes: int,
    *,
    num_steps: int | None,
    save_every_steps: int | None,
    keep_last: int,
    keep_every_steps: int | None = None,
    num_best: int = 0,
    num_trained: int | None = None,
    export_bytes: int = 0,
) -> Checkpoints:
    """Return the checkpoints of a run with `num_steps` steps.

    Args:
        num_parameters: Number of saved parameters.
        param_bytes: Size of one parameter.
        num_steps: None if the run's length is unknown. Then `num_written` is the maximum on disk.
        save_every_steps: None saves only at the end.
        keep_last: Number of newest checkpoints to keep, or 0 for all.
        keep_every_steps: Checkpoints at multiples of this are kept permanently.
        num_best: Number of best checkpoints kept in addition.
        num_trained: Number of parameters with optimizer states; default: all.
        export_bytes: Size of the export at the end; 0 without one.
    """
    if num_steps is None:
        num_written = keep_last + 1 + num_best
    else:
        num_written = 1 if save_every_steps is None else -(-num_steps // save_every_steps)
    num_lasting = 0
    if num_steps is not None and save_every_steps is not None and keep_every_steps is not None:
        num_lasting = num_steps // math.lcm(save_every_steps, keep_every_steps)
    return Checkpoints(
        num_parameters=num_parameters,
        param_bytes=param_bytes,
        num_trained=num_parameters if num_trained is None else num_trained,
        num_written=num_written,
        num_kept=keep_last or num_written,
        num_lasting=num_lasting,
        num_best=num_best,
        export_bytes=export_bytes,
    )
