"""Identifies the weights that a run's adapters belong to."""

from __future__ import annotations

from pathlib import Path

from ascend_cpt.checkpoint.fingerprint import hash_values
from ascend_cpt.checkpoint.state import read_state
from ascend_cpt.checkpoint.verify import list_weight_files
from ascend_cpt.weights.hf_folder import HfFolder, is_hf_folder
from ascend_cpt.weights.lora.base import BaseWeights, identify_checkpoint, identify_model


def identify_base(folder: Path, *, shared: bool = True) -> BaseWeights:
    """Return the identity of the weights in a Hugging Face folder or the folder of a checkpoint.

    Args:
        folder: The folder.
        shared: Whether all nodes see the same folder. Otherwise, each node has only its own files of a checkpoint, and
            their checksums are not part of the identity.

    Raises:
        CheckpointError: the folder is damaged, or is neither of both.
    """
    if is_hf_folder(folder):
        return BaseWeights(folder=folder, identity=identify_model(HfFolder(folder)))
    saved = read_state(folder)
    names = list_weight_files(saved) if shared else ()
    weights = {name: saved.checksums[name] for name in names if name in saved.checksums}
    identity = identify_checkpoint(hash_values(saved.fingerprint), saved.step, weights)
    return BaseWeights(folder=folder, identity=identity)
