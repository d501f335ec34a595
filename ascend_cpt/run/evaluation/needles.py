"""Loads needle tasks from their packed datasets."""

from __future__ import annotations

from collections.abc import Mapping

from ascend_cpt.config.task_schema import TaskConfig
from ascend_cpt.data.packed.manifest import Manifest, check_shards, load_manifest
from ascend_cpt.data.packed.token_stream import TokenStream
from ascend_cpt.data.tokenizing.info import TokenizerInfo
from ascend_cpt.errors import ConfigError, DataError
from ascend_cpt.tasks.check import NEEDLE
from ascend_cpt.tasks.load import Encode, Task
from ascend_cpt.tasks.needle import load_needle_task


def open_haystacks(tasks: Mapping[str, TaskConfig]) -> dict[str, Manifest]:
    """Return the manifest of each needle task's dataset, so that the dataset's files can be verified.

    Raises:
        DataError: a missing or damaged dataset.
    """
    return open_each("task", {name: config.path for name, config in tasks.items() if config.kind == NEEDLE})


def open_each(what: str, paths: Mapping[str, str]) -> dict[str, Manifest]:
    """Check each named dataset's file sizes and return its manifest. Messages use `what`.

    Raises:
        DataError: a missing or damaged dataset.
    """
    manifests = {}
    for name, path in paths.items():
        try:
            manifests[name] = load_manifest(path)
            check_shards(manifests[name])
        except DataError as error:
            raise DataError(f"{what} {name}: {error}") from None
    return manifests


def open_needle_task(
    name: str, config: TaskConfig, encode: Encode, tokenizer: TokenizerInfo, *, seq_length: int, add_prefix: bool
) -> Task:
    """Return a needle task that uses the text of the dataset at its `path`.

    Args:
        name: Name of the task.
        config: The task's configuration, of kind `needle`.
        encode: Encodes text to token ids of `tokenizer`, without special tokens.
        tokenizer: The tokenizer of the run.
        seq_length: Length of the network's input.
        add_prefix: Begin every prompt with BOS, for tokenizers that add BOS.

    Raises:
        ConfigError: settings that cannot work, or a dataset packed with another tokenizer.
        DataError: a missing or damaged dataset, or one that is too short.
    """
    manifest = load_manifest(config.path)
    check_shards(manifest)
    if manifest.tokenizer.fingerprint != tokenizer.fingerprint:
        raise ConfigError(
            f"task {name}: {config.path} was packed with a different tokenizer ({manifest.tokenizer.name}) than the "
            f"run's ({tokenizer.name}); pack it again with the run's"
        )
    stream = TokenStream(manifest)
    return load_needle_task(
        name,
        config,
        encode,
        stream.read,
        seq_length=seq_length,
        prefix_token=tokenizer.prefix_id,
        num_tokens=stream.num_tokens,
        eod_token=manifest.tokenizer.eod_id,
        add_prefix=add_prefix,
    )
