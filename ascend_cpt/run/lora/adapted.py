"""Opens the checkpoints of a run with adapters, together with the weights that the adapters belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ascend_cpt.checkpoint.locate import locate_checkpoint
from ascend_cpt.checkpoint.state import STATE_NAME, read_state
from ascend_cpt.errors import CheckpointError
from ascend_cpt.model.lora import find_lora_problem, read_settings
from ascend_cpt.model.sizes import read_sizes
from ascend_cpt.run.lora.base import identify_base
from ascend_cpt.strict_json import shorten
from ascend_cpt.weights.dtypes import DTYPES
from ascend_cpt.weights.hf_folder import HfFolder, is_hf_folder
from ascend_cpt.weights.lora.base import FOLDER, IDENTITY
from ascend_cpt.weights.lora.merge import Adapters, FromHf, Merged
from ascend_cpt.weights.mindformers_folder import MindFormersFolder
from ascend_cpt.weights.sources import TensorSource


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """The adapters of some checkpoints of a run, the folder of their base, and the base merged with each of them."""

    adapters: tuple[Adapters, ...]
    base: Path
    merged: tuple[Merged, ...]


def open_adapted(
    folders: Sequence[Path],
    sources: Sequence[TensorSource],
    config: Mapping[str, Any],
    *,
    base: Path | None,
    dtype: str | None,
) -> Adapted | None:
    """Return the adapters in checkpoints of a run and their base, or None if the checkpoints have all weights.

    Args:
        folders: The checkpoint folders.
        sources: The tensors in them.
        config: The model's Hugging Face configuration.
        base: Folder of the base, if it has been moved.
        dtype: The dtype of the merged weights, such as "float32"; default: that of the base.

    Raises:
        CheckpointError: the base is missing or has other weights, or the adapters do not fit the model.
    """
    recorded = read_state(folders[0]).base if (folders[0] / STATE_NAME).is_file() else {}
    if not recorded:
        return None
    sizes = read_sizes(config)
    try:
        settings = read_settings(read_state(folders[0]).fingerprint["lora"])
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folders[0] / STATE_NAME}: its fingerprint does not describe adapters ({shorten(str(error))}); use an "
            "unmodified checkpoint"
        ) from error
    if problem := find_lora_problem(sizes, settings):
        raise CheckpointError(f"{folders[0] / STATE_NAME}: lora: {problem}")
    found = _find_base(folders[0], recorded, base)
    weights: TensorSource
    if is_hf_folder(found):
        folder = HfFolder(found)
        folder.check()
        folder.check_model(config)
        weights, first = FromHf(folder), next(iter(folder.tensors.values())).dtype
    else:
        weights = MindFormersFolder(found)
        first = next(iter(weights.tensors.values())).dtype
    adapters = tuple(Adapters(source, sizes, settings) for source in sources)
    kind = DTYPES[dtype] if dtype else first
    return Adapted(adapters=adapters, base=found, merged=tuple(Merged(weights, one, kind) for one in adapters))


def _find_base(checkpoint: Path, recorded: Mapping[str, str], given: Path | None) -> Path:
    """Return the folder of the base, after comparing its weights with those that the adapters were trained on."""
    folder = given or Path(recorded.get(FOLDER, ""))
    if not folder.is_dir():
        raise CheckpointError(
            f"{checkpoint}: its adapters belong to the weights of {folder}, which is missing; copy it back, or give "
            "its new location with tools/convert_weights.py to-hf --merge --base"
        )
    if not is_hf_folder(folder):
        folder = locate_checkpoint(folder).folder
    if recorded.get(IDENTITY) not in [identify_base(folder, shared=shared).identity for shared in (True, False)]:
        raise CheckpointError(
            f"{folder}: the adapters of {checkpoint} were trained on other weights; give the folder that contains "
            "those weights"
        )
    return folder
