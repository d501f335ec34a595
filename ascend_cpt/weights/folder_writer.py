"""Writes a folder of sharded safetensors, one tensor at a time. The folder gets its final name once it is complete."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from ascend_cpt.errors import CheckpointError
from ascend_cpt.files import sync_file, write_folder_whole
from ascend_cpt.model.sizes import CONFIG_NAME
from ascend_cpt.weights.dtypes import Array
from ascend_cpt.weights.hf_folder import INDEX_NAME, WEIGHTS_NAME
from ascend_cpt.weights.safetensors_file import TensorInfo, write_file

DEFAULT_SHARD_BYTES = 5_000_000_000
# (file number from 0, number of files) → file name.
FileNamer = Callable[[int, int], str]


def name_hf_file(index: int, num_files: int) -> str:
    """Return the file name used by transformers."""
    return WEIGHTS_NAME if num_files == 1 else f"model-{index + 1:05d}-of-{num_files:05d}.safetensors"


def name_mindformers_file(index: int, num_files: int) -> str:
    """Return the file name used by MindFormers' new checkpoint format."""
    return f"model-{index:07d}-{num_files:07d}.safetensors"


def check_new_folder(path: Path) -> None:
    """Raise CheckpointError if `path` exists."""
    if path.exists():
        raise CheckpointError(f"{path}: already exists: remove it or choose another folder")


@contextmanager
def create_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder next to `path`. Rename it to `path` at the end, or remove it after an error.

    Raises:
        CheckpointError: `path` exists, or the disk is full or not writable.
    """
    check_new_folder(path)
    try:
        with write_folder_whole(path) as temporary:
            yield temporary
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}: check space and permissions") from error


def write_shards(
    folder: Path,
    infos: Sequence[TensorInfo],
    tensors: Iterable[tuple[str, Array]],
    *,
    name_file: FileNamer,
    max_shard_bytes: int,
) -> None:
    """Write tensors in the order of `infos` to files of at most `max_shard_bytes` (at least one tensor each).

    Several Hugging Face files get an index. Peak memory is two tensors, since one is read while another is written.
    """
    shards = _split(infos, max_shard_bytes)
    stream = _read_ahead(tensors)
    places: dict[str, str] = {}
    with ThreadPoolExecutor(1) as pool:
        syncs = []
        for index, shard in enumerate(shards):
            name = name_file(index, len(shards))
            write_file(folder / name, shard, islice(stream, len(shard)))
            # Sync this file while the next one is written.
            syncs.append(pool.submit(sync_file, folder / name))
            places.update((info.name, name) for info in shard)
        assert next(stream, None) is None
        for sync in syncs:
            sync.result()
    if name_file is name_hf_file and len(shards) > 1:
        total = {"total_size": sum(info.size_bytes for info in infos)}
        write_json(folder / INDEX_NAME, {"metadata": total, "weight_map": dict(sorted(places.items()))})


def _read_ahead(tensors: Iterable[tuple[str, Array]]) -> Iterator[tuple[str, Array]]:
    """Yield the items of `tensors`, prefetching one item in another thread."""
    stream = iter(tensors)
    with ThreadPoolExecutor(1) as pool:
        next_item = pool.submit(next, stream, None)
        while (item := next_item.result()) is not None:
            next_item = pool.submit(next, stream, None)
            yield item


def write_config(folder: Path, config: Mapping[str, Any], dtype: str) -> None:
    """Write config.json with the weights' dtype, for example "bfloat16"."""
    # transformers 4.56 renamed the field; it reads both names.
    key = "dtype" if "dtype" in config else "torch_dtype"
    write_json(folder / CONFIG_NAME, {**config, key: dtype})


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file with the same formatting as transformers."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _split(infos: Sequence[TensorInfo], max_shard_bytes: int) -> list[list[TensorInfo]]:
    shards: list[list[TensorInfo]] = [[]]
    shard_bytes = 0
    for info in infos:
        if shards[-1] and shard_bytes + info.size_bytes > max_shard_bytes:
            shards.append([])
            shard_bytes = 0
        shards[-1].append(info)
        shard_bytes += info.size_bytes
    return shards
