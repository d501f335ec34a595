"""Plans an evaluation from a configuration or from the command line alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ascend_cpt.checkpoint.fingerprint import describe_differences
from ascend_cpt.checkpoint.locate import find_resolved, locate_checkpoint
from ascend_cpt.config.loader import RunConfig
from ascend_cpt.config.monitoring_schema import ValidationSetConfig
from ascend_cpt.config.parallel_layout import ParallelLayout
from ascend_cpt.config.task_schema import TaskConfig
from ascend_cpt.data.packed.manifest import Manifest
from ascend_cpt.data.packed.network_inputs import ACROSS, RowFormat
from ascend_cpt.data.tokenizing.files import open_tokenizer
from ascend_cpt.errors import CheckpointError, ConfigError, DataError
from ascend_cpt.model.sizes import CONFIG_NAME, find_window_problem, read_config, select_model_fields
from ascend_cpt.run.document_attention import MIN_SEQ_LENGTH_ON_ASCEND
from ascend_cpt.run.evaluation.needles import open_each
from ascend_cpt.run.evaluation.tasks import find_tokenizer, load_tasks
from ascend_cpt.run.mindformers_yaml import remove_boundary_settings
from ascend_cpt.run.resolved_run import Dataset
from ascend_cpt.run.starting_point import select_model_identity
from ascend_cpt.run.trained_model import read_model_config, read_section
from ascend_cpt.tasks.load import Task
from ascend_cpt.weights.hf_folder import HfFolder

ROUND_TO = 64
"""Rows of tasks alone are as long as the longest request, rounded up to a multiple of this."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Evaluation settings. None means that the value is derived."""

    sets: Mapping[str, ValidationSetConfig]
    tasks: Mapping[str, TaskConfig]
    tokenizer: Path | None
    tokenizer_type: str
    max_rows: int | None
    seq_length: int | None
    document_attention: str | None
    """None: that of the run, or across documents for a Hugging Face folder."""
    device: str
    dtype: str
    batch_size: int
    tensor_parallel: int
    model: Mapping[str, Any] | None
    """The model section of a configuration."""
    context: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """The sets, tasks and network for an evaluation."""

    sets: tuple[Dataset, ...]
    tasks: tuple[Task, ...]
    max_rows: int | None
    row_format: RowFormat
    layout: ParallelLayout
    device: str
    model: Mapping[str, Any]
    context: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Trained:
    """The model section and row settings of the run that saved a checkpoint."""

    model: Mapping[str, Any]
    row_format: RowFormat


def read_settings(config: RunConfig, settings: EvaluationSettings) -> EvaluationSettings:
    """Return the settings completed from the configuration: sets and tasks by name, model, attention, device."""
    cpt, validation = config.cpt, config.cpt.validation
    parallel = config.mindformers.get("parallel_config") or {}
    model = config.mindformers["model"]["model_config"]
    section = config.mindformers.get("context") or {}
    context = {key: value for key, value in section.items() if key not in ("device_target", "mode")}
    configured = validation.sets if validation else {}
    # A path on the command line replaces the configured one; the configured alarm is kept.
    given = {
        name: replace(configured.get(name, entry), path=entry.path, seq_length=None)
        for name, entry in settings.sets.items()
    }
    tokenizer, tokenizer_type = settings.tokenizer, settings.tokenizer_type
    if tokenizer is None and validation and (validation.tasks or settings.tasks):
        tokenizer, tokenizer_type = find_tokenizer(config), validation.tokenizer_type
    return EvaluationSettings(
        sets={**configured, **given},
        tasks={**(validation.tasks if validation else {}), **settings.tasks},
        tokenizer=tokenizer,
        tokenizer_type=tokenizer_type,
        max_rows=settings.max_rows or (validation.max_rows if validation else None),
        seq_length=settings.seq_length or cpt.seq_length,
        document_attention=settings.document_attention or cpt.document_attention,
        device=settings.device or str(section.get("device_target", "Ascend")),
        dtype=settings.dtype,
        batch_size=settings.batch_size,
        tensor_parallel=settings.tensor_parallel or _choose_tensor_parallel(parallel, model),
        model=model,
        context=context,
    )


def _choose_tensor_parallel(parallel: Mapping[str, Any], model: Mapping[str, Any]) -> int:
    """Return the tensor-parallel size: the devices per model replica in training, if the heads divide evenly.

    An evaluation has no pipeline stages, so tensor parallelism must also split what the stages split in training.
    """
    devices = int(parallel.get("model_parallel") or 1) * int(parallel.get("pipeline_stage") or 1)
    return math.gcd(devices, int(model.get("num_key_value_heads") or model.get("num_attention_heads") or 1))


def make_plan(path: Path, settings: EvaluationSettings, *, world_size: int) -> EvaluationPlan:
    """Return the plan for evaluating the weights at `path`.

    Raises:
        CheckpointError: when there are no weights, or they belong to a different model from the configured one.
        ConfigError: when there is nothing to evaluate, or the layout does not fit.
        DataError: when a dataset, a task or the tokenizer is missing or damaged.
    """
    trained = None if (path / CONFIG_NAME).is_file() else _read_resolved(path)
    model = _choose_model(path, settings, trained)
    # Settings for the layers of pipeline stages; an evaluation has no stages.
    model.pop("offset", None)
    manifests = open_sets(settings)
    for name, manifest in manifests.items():
        if manifest.tokenizer.vocab_size > model["vocab_size"]:
            raise DataError(
                f"validation set {name}: packed with a tokenizer of {manifest.tokenizer.vocab_size} entries, but the "
                f"model's vocab_size is {model['vocab_size']}; pack it with the model's tokenizer"
            )
    longest_row = int(model.get("max_position_embeddings") or 4096)
    if trained is not None and manifests:
        longest_row = trained.row_format.seq_length  # for sets without their own row length
    lengths = {name: settings.sets[name].seq_length or manifest.seq_length for name, manifest in manifests.items()}
    limit = settings.seq_length or max((length or 0 for length in lengths.values()), default=0) or longest_row
    tokenizer = settings.tokenizer or path
    tasks: tuple[Task, ...] = ()
    if settings.tasks:
        tasks = load_tasks(
            settings.tasks,
            tokenizer=tokenizer,
            tokenizer_type=settings.tokenizer_type,
            seq_length=limit,
            manifests=manifests,
        )
    if settings.seq_length is None and not manifests:
        longest = max(len(r.context) + len(r.continuation) - 1 for task in tasks for r in task.requests)
        limit = min(limit, -(-longest // ROUND_TO) * ROUND_TO)
    if problem := find_window_problem(model, limit):
        raise ConfigError(f"{path}: {problem}")
    sets = tuple(
        Dataset(name=name, manifest=manifest, seq_length=lengths[name] or limit) for name, manifest in manifests.items()
    )
    for dataset in sets:
        if dataset.seq_length > limit:
            raise ConfigError(
                f"validation set {dataset.name}: has rows of {dataset.seq_length} tokens, more than --seq-length "
                f"{limit}; raise it"
            )
    return EvaluationPlan(
        sets=sets,
        tasks=tasks,
        max_rows=settings.max_rows,
        row_format=_make_row_format(settings, trained, manifests, tokenizer, limit),
        layout=_make_layout(settings, world_size),
        device=settings.device,
        model=model,
        context=settings.context,
    )


def open_sets(settings: EvaluationSettings) -> dict[str, Manifest]:
    """Return the manifest of each validation set.

    Raises:
        ConfigError: when there is nothing to evaluate.
        DataError: when a dataset or task file is missing or damaged.
    """
    if not settings.sets and not settings.tasks:
        raise ConfigError(
            "nothing to evaluate: give --validation NAME=PATH, --task NAME=KIND:PATH, or a --config with cpt.validation"
        )
    return open_each("validation set", {name: entry.path for name, entry in settings.sets.items()})


def _choose_model(path: Path, settings: EvaluationSettings, trained: _Trained | None) -> dict[str, Any]:
    """Return the model section from the configuration, or else the one saved with the weights."""
    own = dict(trained.model) if trained else _read_hf_model(path, settings.dtype)
    if settings.model is None:
        return own
    given = dict(settings.model)
    if trained is None:
        # config.json and a configuration may write the same model in different ways.
        HfFolder(path).check_model(given)
        return given
    before, now = select_model_identity(own), select_model_identity(given)
    if differences := describe_differences(before, now):
        raise CheckpointError(
            f"{path}: its model differs from the configuration's ({'; '.join(differences)}); give the configuration "
            "of this model, or drop --config"
        )
    return given


def _read_hf_model(path: Path, dtype: str) -> dict[str, Any]:
    return {
        **select_model_fields(read_config(path)),
        "params_dtype": "float32",
        "compute_dtype": dtype,
        "layernorm_compute_dtype": "float32",
        "rotary_dtype": "float32",
    }


def _read_resolved(path: Path) -> _Trained:
    """Read the model and row settings from the resolved.yaml of the run that saved the checkpoint at `path`."""
    checkpoint = locate_checkpoint(path).folder
    resolved = find_resolved(checkpoint)
    if resolved is None:
        raise CheckpointError(f"{checkpoint}: has no resolved.yaml of its run; copy it there")
    return _Trained(
        model=remove_boundary_settings(read_model_config(resolved)),
        row_format=RowFormat.from_record(read_section(resolved, "train_dataset.data_loader.row_format")),
    )


def _make_row_format(
    settings: EvaluationSettings,
    trained: _Trained | None,
    manifests: Mapping[str, Manifest],
    tokenizer: Path,
    seq_length: int,
) -> RowFormat:
    infos = [manifest.tokenizer for manifest in manifests.values()]
    info = infos[0] if infos else open_tokenizer(settings.tokenizer_type, tokenizer).info
    boundaries = "none"
    is_within = trained is not None and trained.row_format.boundaries != "none"
    if settings.document_attention is not None:
        is_within = settings.document_attention != ACROSS
    if is_within:
        boundaries = "mask" if settings.device == "CPU" else "ends"
        if boundaries == "ends" and seq_length < MIN_SEQ_LENGTH_ON_ASCEND:
            raise ConfigError(
                f"--document-attention within: needs rows of at least {MIN_SEQ_LENGTH_ON_ASCEND} tokens on Ascend, got "
                f"{seq_length}; give a longer --seq-length"
            )
    return RowFormat(
        seq_length=seq_length,
        pad_id=info.pad_id,
        eod_id=info.eod_id,
        boundaries=boundaries,
        micro_batch_size=settings.batch_size,
    )


def _make_layout(settings: EvaluationSettings, world_size: int) -> ParallelLayout:
    tensor = 1 if settings.device == "CPU" else math.gcd(max(settings.tensor_parallel, 1), world_size)
    return ParallelLayout(world_size=world_size, data_parallel=world_size // tensor, tensor_parallel=tensor)
