"""Opens a run's checkpoints for export to a Hugging Face folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ascend_cpt.checkpoint.locate import (
    RESOLVED_NAME,
    Checkpoint,
    check_checkpoint,
    find_resolved,
    list_step_folders,
)
from ascend_cpt.config.yaml_file import read_yaml
from ascend_cpt.errors import CheckpointError
from ascend_cpt.model.sizes import CONFIG_NAME, ModelSizes, read_config, read_sizes
from ascend_cpt.run.lora.adapted import open_adapted
from ascend_cpt.run.verified import Verifier
from ascend_cpt.weights.hf_config import make_config
from ascend_cpt.weights.hf_folder import list_companions
from ascend_cpt.weights.lora.merge import Adapters
from ascend_cpt.weights.mindformers_folder import MindFormersFolder
from ascend_cpt.weights.sources import MeanOfFolders, TensorSource

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """The tensors of a checkpoint, the model's Hugging Face configuration, and additional files to copy."""

    source: TensorSource
    config: Mapping[str, Any]
    companions: tuple[Path, ...]
    origins: tuple[Path, ...]
    """The checkpoint folders that the tensors come from; several if they are averaged."""
    adapters: Adapters | None = None
    """The adapters of a run that trained only them. `source` has their base merged with them."""
    base: Path | None = None
    """The folder with the weights that the adapters belong to."""


def open_trained(
    path: Path,
    *,
    num_averaged: int = 1,
    like: Path | None = None,
    verify: bool = True,
    base: Path | None = None,
    dtype: str | None = None,
) -> TrainedModel:
    """Open the checkpoint at `path`, which is a run (its newest step is used), a single step or a converted folder.

    Args:
        path: The run folder, `checkpoint` folder, `iteration_*` folder, or the target of `convert_to_mindformers`.
        num_averaged: Average this many of the run's newest complete checkpoints.
        like: A folder to copy tokenizer files, generation_config.json and, if present, config.json from.
        verify: Compare the files to be read with the checksums recorded at saving. In a run, damaged steps are
            skipped with a warning, like incomplete ones.
        base: For a run that trained adapters, the folder of the weights they belong to; default: the recorded one.
        dtype: The dtype of the merged weights, such as "float32"; default: that of the base.

    Raises:
        CheckpointError: when the checkpoint is missing or damaged, its base is missing or has other weights, or `like`
            holds a different model.
    """
    if (path / CONFIG_NAME).is_file():
        folders, config, own = [path], read_config(path), list_companions(path)
    else:
        folders = [checkpoint.folder for checkpoint in _choose(path, num_averaged, verify)]
        config, own = _read_run_config(folders[0]), []
    if num_averaged > len(folders):
        raise CheckpointError(
            f"{path}: complete checkpoints: {len(folders)}, fewer than --average {num_averaged}; lower it"
        )
    if like is not None:
        own = list_companions(like)
        if (like / CONFIG_NAME).is_file():
            config = _adopt_config(read_config(like), config, like)
    sources: list[TensorSource] = [MindFormersFolder(folder) for folder in folders]
    adapted = open_adapted(folders, sources, config, base=base, dtype=dtype)
    if base is not None and adapted is None:
        raise CheckpointError(f"{path}: has no adapters; remove --base")
    if adapted is not None:
        sources = list(adapted.merged)
    return TrainedModel(
        source=sources[0] if len(sources) == 1 else MeanOfFolders(sources),
        config=config,
        companions=tuple(own),
        origins=tuple(folders),
        adapters=adapted.adapters[0] if adapted else None,
        base=adapted.base if adapted else None,
    )


def check_like(like: Path, model_config: Mapping[str, Any]) -> None:
    """Check that a run with this `model.model_config` can be exported like the folder `like`.

    Raises:
        CheckpointError: the folder has neither tokenizer files nor config.json, or describes a different model.
    """
    has_config = (like / CONFIG_NAME).is_file()
    if not has_config and not list_companions(like):
        raise CheckpointError(f"{like}: has neither tokenizer files nor {CONFIG_NAME}; give the folder of a model")
    if has_config:
        _adopt_config(read_config(like), make_config(model_config), like)


def _choose(path: Path, num_averaged: int, verify: bool) -> list[Checkpoint]:
    """Return the checkpoint at `path` and the same run's earlier complete checkpoints, newest first."""
    verifier = Verifier(weights_only=True, enabled=verify)
    newest, skipped = verifier.locate(path)
    chosen = [newest]
    for _, folder in list_step_folders(newest.folder.parent):
        if len(chosen) < num_averaged and folder.name < newest.folder.name:
            if problem := verifier.find_damage(folder):
                skipped = (*skipped, problem)
                continue
            chosen.append(check_checkpoint(folder))
    for line in skipped:
        logger.warning("skipped an unusable checkpoint: %s", line)
    for checkpoint in chosen:
        for line in verifier.note_unverified(checkpoint):
            logger.warning("%s", line)
    return chosen


def _read_run_config(checkpoint: Path) -> dict[str, Any]:
    """Return the model configuration from the resolved YAML file of the checkpoint's run."""
    path = find_resolved(checkpoint)
    if path is None:
        raise CheckpointError(
            f"{checkpoint.parent.parent / RESOLVED_NAME}: not found; copy the run's {RESOLVED_NAME} into {checkpoint}"
        )
    return make_config(read_model_config(path))


def read_model_config(path: Path) -> dict[str, Any]:
    """Return `model.model_config` from a resolved YAML file. Raises the same errors as `read_section`."""
    return read_section(path, "model.model_config")


def read_section(path: Path, name: str) -> dict[str, Any]:
    """Return a section of a resolved YAML file, which may have come with a checkpoint from elsewhere.

    Args:
        path: The file.
        name: Keys joined by dots.

    Raises:
        CheckpointError: the file cannot be read, or has no such section.
    """
    try:
        section = read_yaml(path)
        for key in name.split("."):
            section = section.get(key) if isinstance(section, dict) else None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not isinstance(section, dict):
        raise CheckpointError(f"{path}: has no {name}")
    return section


def _adopt_config(config: dict[str, Any], trained: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return `config` with the trained vocab_size, after checking that it describes the trained model."""
    sizes, wanted = read_sizes({**config, "vocab_size": trained["vocab_size"]}), read_sizes(trained)
    names = [field.name for field in fields(ModelSizes) if getattr(sizes, field.name) != getattr(wanted, field.name)]
    if names:
        differences = "; ".join(
            f"{name} is {getattr(sizes, name)}, but the run was trained with {getattr(wanted, name)}" for name in names
        )
        raise CheckpointError(f"{folder / CONFIG_NAME}: describes another model: {differences}")
    return {**config, "vocab_size": trained["vocab_size"]}
