"""Exports a run with adapters: the adapters alone in PEFT's format, or the whole model."""

from __future__ import annotations

from pathlib import Path

from ascend_cpt.errors import CheckpointError
from ascend_cpt.run.export.base_weights import find_hub_name
from ascend_cpt.run.trained_model import TrainedModel
from ascend_cpt.weights.convert import Options, Summary
from ascend_cpt.weights.dtypes import DTYPES
from ascend_cpt.weights.lora.peft import write_peft


def check_merge(trained: TrainedModel, path: Path, *, merge: bool) -> None:
    """Raise CheckpointError if `--merge` was given for a run that trained all weights."""
    if merge and trained.adapters is None:
        raise CheckpointError(f"{path}: has no adapters to merge; remove --merge")


def export_adapters(trained: TrainedModel, target: Path, options: Options) -> Summary:
    """Write the adapters of a run to the new folder `target`, for PEFT.

    Raises:
        CheckpointError: an option is only for whole models, or `target` exists or cannot be written.
    """
    assert trained.adapters is not None and trained.base is not None
    for given, flag in ((len(trained.origins) > 1, "--average"), (options.vocab_size is not None, "--resize-vocab")):
        if given:
            raise CheckpointError(f"{flag}: works only for whole models, not for adapters; give --merge as well")
    base_model = find_hub_name(trained.base) or str(trained.base.absolute())
    return write_peft(trained.adapters, base_model, target, dtype=DTYPES[options.dtype or "float32"])
