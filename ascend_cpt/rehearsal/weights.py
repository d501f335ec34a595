"""Writes a Hugging Face folder of random weights from which to start a rehearsal."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ascend_cpt.model.parameters import list_hf_shapes
from ascend_cpt.model.sizes import read_sizes
from ascend_cpt.weights.dtypes import DTYPES, Array, cast
from ascend_cpt.weights.folder_writer import create_folder, name_hf_file, write_config, write_shards
from ascend_cpt.weights.hf_config import make_config
from ascend_cpt.weights.safetensors_file import TensorInfo

DTYPE = "bfloat16"  # as in published models
MAX_FILE_BYTES = 400_000  # several files with an index, as in published models
NORM_SPREAD = 0.1


def write_random_folder(model: Mapping[str, Any], folder: Path, *, seed: int) -> None:
    """Write random weights for a `model.model_config` as a Hugging Face folder.

    Matrices and biases have the standard deviation `initializer_range`. Norm weights are spread around 1, so that a
    skipped norm is detected.
    """
    config = make_config(model)
    shapes = list_hf_shapes(read_sizes(config))
    infos = [TensorInfo(name=name, dtype=DTYPES[DTYPE], shape=shape) for name, shape in shapes.items()]
    spread = float(model.get("initializer_range") or 0.02)
    with create_folder(folder) as temporary:
        write_shards(
            temporary, infos, _draw(infos, spread, seed), name_file=name_hf_file, max_shard_bytes=MAX_FILE_BYTES
        )
        write_config(temporary, config, DTYPE)


def _draw(infos: list[TensorInfo], spread: float, seed: int) -> Iterator[tuple[str, Array]]:
    for info in infos:
        generator = np.random.default_rng([seed, zlib.crc32(info.name.encode())])
        values = generator.standard_normal(info.shape, dtype=np.float32)
        is_norm = info.name.endswith("norm.weight")
        tensor = 1 + NORM_SPREAD * values if is_norm else spread * values
        yield info.name, cast(tensor.astype(np.float32), "F32", info.dtype, info.name)
