"""Loads a run's evaluation tasks with the run's tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from ascend_cpt.config.loader import RunConfig
from ascend_cpt.config.task_schema import TaskConfig
from ascend_cpt.data.packed.manifest import Manifest
from ascend_cpt.data.tokenizing.files import open_tokenizer
from ascend_cpt.data.tokenizing.names import HUGGING_FACE, TOKENIZER_TYPES
from ascend_cpt.data.tokenizing.reference_engines import adds_bos, make_reference_engine
from ascend_cpt.errors import ConfigError, DataError
from ascend_cpt.run.evaluation.needles import open_needle_task
from ascend_cpt.run.resolved_run import ResolvedRun
from ascend_cpt.tasks.check import NEEDLE
from ascend_cpt.tasks.load import Task, load_task


def load_run_tasks(run: ResolvedRun) -> tuple[Task, ...]:
    """Return the tasks of `cpt.validation.tasks`, encoded for rows of the run.

    Raises:
        ConfigError: when there is no tokenizer, or it is not the datasets' tokenizer.
        DataError: when a file of a task or the tokenizer is missing or damaged.
    """
    validation = run.config.cpt.validation
    if validation is None or not validation.tasks:
        return ()
    path = find_tokenizer(run.config)
    return load_tasks(
        validation.tasks,
        tokenizer=path,
        tokenizer_type=validation.tokenizer_type,
        seq_length=run.budget.seq_length,
        manifests={dataset.name: dataset.manifest for dataset in (*run.sources, *run.validation)},
    )


def find_tokenizer(config: RunConfig) -> Path:
    """Return the path of the tokenizer that encodes the tasks.

    Raises:
        ConfigError: when no tokenizer is configured and the initial weights have none.
    """
    validation = config.cpt.validation
    assert validation is not None
    if validation.tokenizer is not None:
        return Path(validation.tokenizer)
    weights = config.initial_weights
    if weights and (Path(weights) / "tokenizer.json").is_file() and validation.tokenizer_type == HUGGING_FACE:
        return Path(weights)
    raise ConfigError(
        f"{config.locate('cpt', 'validation', 'tasks')}: cpt.validation.tasks: need a tokenizer; set "
        "cpt.validation.tokenizer to the folder or file that the datasets were packed with"
    )


def load_tasks(
    tasks: Mapping[str, TaskConfig],
    *,
    tokenizer: Path,
    tokenizer_type: str,
    seq_length: int,
    manifests: Mapping[str, Manifest],
) -> tuple[Task, ...]:
    """Return the tasks, encoded with the tokenizer for rows of `seq_length` tokens.

    Raises:
        ConfigError: when a dataset was packed with another tokenizer.
        DataError: when a file of a task or the tokenizer is missing or damaged.
    """
    if tokenizer_type not in TOKENIZER_TYPES:
        raise ConfigError(f"tokenizer_type: {tokenizer_type!r} is unknown; choose from {', '.join(TOKENIZER_TYPES)}")
    file = open_tokenizer(tokenizer_type, tokenizer)
    for name, manifest in manifests.items():
        packed_with = manifest.tokenizer
        if packed_with.fingerprint != file.info.fingerprint:
            raise ConfigError(
                f"{tokenizer}: is not the tokenizer that {name} was packed with ({packed_with.name}); give that one "
                "(cpt.validation.tokenizer or --tokenizer)"
            )
    engine, info, add_prefix = make_reference_engine(file), file.info, adds_bos(file)

    def encode(text: str) -> list[int]:
        return [int(token) for token in engine.encode_batch([text]).ids]

    def load(name: str, config: TaskConfig) -> Task:
        if config.kind == NEEDLE:
            return open_needle_task(name, config, encode, info, seq_length=seq_length, add_prefix=add_prefix)
        return load_task(
            name, config, encode, seq_length=seq_length, prefix_token=info.prefix_id, add_prefix=add_prefix
        )

    loaded = tuple(load(name, config) for name, config in tasks.items())
    for task in loaded:
        _check_padding(task, file.info.pad_id)
    return loaded


def _check_padding(task: Task, pad_id: int) -> None:
    """Raise DataError if a request contains the padding token, whose labels the network ignores."""
    for request in task.requests:
        if pad_id in request.context or pad_id in request.continuation:
            raise DataError(
                f"{task.items[request.item]}: contains token {pad_id}, which is the padding token of this tokenizer; "
                "remove the item"
            )


def describe_tasks(tasks: Iterable[Task], seq_length: int) -> list[str]:
    """Return a line for each task with its number of items and the cost of evaluating it."""
    lines = []
    for task in tasks:
        num_rows = len(task.requests)
        items = "item" if len(task.too_long) == 1 else "items"
        left_out = f"; {len(task.too_long)} {items} longer than a row left out: {_list(task.too_long)}"
        lines.append(
            f"task     {task.name}: {task.num_items} items, {num_rows} rows of {seq_length} tokens per evaluation"
            f"{left_out if task.too_long else ''}"
        )
    return lines


def _list(names: tuple[str, ...], shown: int = 3) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
