"""Weights from elsewhere: safetensors headers, index files, shard maps and config.json."""

from __future__ import annotations

import json
import math
from pathlib import Path
from random import Random

from ascend_cpt.model.parameters import count_parameters, list_hf_shapes
from ascend_cpt.model.sizes import CONFIG_NAME, read_config, read_sizes
from ascend_cpt.weights.hf_config import make_config
from ascend_cpt.weights.hf_folder import INDEX_NAME, HfFolder
from ascend_cpt.weights.mindformers_folder import METADATA_NAME, MindFormersFolder
from ascend_cpt.weights.safetensors_file import SafetensorsFile
from tests.attacks.fuzz.harness import Prepared, Target
from tests.attacks.fuzz.mutate import mutate_bytes, mutate_json

CONFIG = {
    "model_type": "qwen3", "vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False, "hidden_act": "silu",
    "rope_scaling": None,
}  # fmt: skip
LLAMA3_ROPE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


def make_file(tensors: dict[str, list[int]], dtype: str = "F32") -> bytes:
    """Return a safetensors file."""
    header, begin = {}, 0
    for name, shape in tensors.items():
        end = begin + 4 * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        begin = end
    return pack_header(json.dumps(header).encode()) + bytes(range(256)) * (begin // 256) + bytes(begin % 256)


def pack_header(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


def prepare_safetensors(folder: Path) -> Prepared:
    path = folder / "x.safetensors"
    seed = make_file({"a": [2, 3], "b.weight": [4], "c": []})
    data = seed[8 + int.from_bytes(seed[:8], "little") :]

    def mutate(random: Random, case: bytes) -> bytes:
        header_bytes = int.from_bytes(case[:8], "little")
        if random.randrange(8) == 0 or header_bytes + 8 > len(case):
            return mutate_bytes(random, case)
        return pack_header(mutate_json(random, case[8 : 8 + header_bytes])) + data

    def run(case: bytes) -> None:
        path.write_bytes(case)
        file = SafetensorsFile(path)
        for name, info in file.tensors.items():
            array = file.read(name)
            assert array.shape == info.shape and array.nbytes == info.size_bytes <= len(case)

    return Prepared(seeds=[seed], mutate=mutate, run=run)


def prepare_index(folder: Path) -> Prepared:
    (folder / CONFIG_NAME).write_text(json.dumps(CONFIG))
    shapes = {name: list(shape) for name, shape in list_hf_shapes(read_sizes(CONFIG)).items()}
    names = list(shapes)
    places = {}
    for number, part in enumerate((names[:5], names[5:]), start=1):
        file_name = f"model-{number:05d}-of-00002.safetensors"
        (folder / file_name).write_bytes(make_file({name: shapes[name] for name in part}))
        places |= dict.fromkeys(part, file_name)

    def run(case: bytes) -> None:
        (folder / INDEX_NAME).write_bytes(case)
        model = HfFolder(folder)
        model.check()
        assert model.tensors.keys() == shapes.keys()
        model.read(names[0])

    return Prepared(seeds=[json.dumps({"weight_map": places}).encode()], mutate=mutate_json, run=run)


def prepare_shard_map(folder: Path) -> Prepared:
    """metadata.json of two tensors: `w` in a grid of two slices, `n` whole."""
    for rank in range(2):
        name = f"cpt-model-000000{rank}-0000002.safetensors"
        (folder / name).write_bytes(make_file({"w": [2, 3], **({"n": [4]} if rank == 0 else {})}))

    def place(rank: int) -> list[dict[str, str]]:
        return [{"file_name": f"cpt-model-000000{rank}-0000002.safetensors", "storage_rank": str(rank)}]

    def entry(shape: list[int], grid: list[int]) -> dict[str, object]:
        count = max(grid)
        return {
            "global_shape": shape,
            "axis_fragmentations": grid,
            "layout": {"interleaved_parallel": False},
            "properties": {"dtype": "Float32"},
            "chunk": [{"global_offset": [index]} for index in range(count)],
        }

    metadata = {
        "state_dict_metadata": {"w": entry([4, 3], [2, 1]), "n": entry([4], [1])},
        "storage_data": {"('w', (0,))": place(0), "('w', (1,))": place(1), "('n', (0,))": place(0)},
    }

    def run(case: bytes) -> None:
        (folder / METADATA_NAME).write_bytes(case)
        model = MindFormersFolder(folder)
        for name, info in model.tensors.items():
            assert model.read(name).shape == info.shape

    return Prepared(seeds=[json.dumps(metadata).encode()], mutate=mutate_json, run=run)


def prepare_config(folder: Path) -> Prepared:
    def run(case: bytes) -> None:
        (folder / CONFIG_NAME).write_bytes(case)
        config = read_config(folder)
        sizes = read_sizes(config)
        made = make_config(config)
        assert read_sizes(made).rope == sizes.rope
        if sizes.num_layers < 1000:
            assert count_parameters(sizes) > 0

    seeds = [
        CONFIG,
        {**CONFIG, "model_type": "llama", "rope_scaling": LLAMA3_ROPE},
        {**CONFIG, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ]
    return Prepared(seeds=[json.dumps(seed).encode() for seed in seeds], mutate=mutate_json, run=run)


TARGETS = (
    Target(name="safetensors", num_cases=25_000, prepare=prepare_safetensors),
    Target(name="index", num_cases=5_000, prepare=prepare_index),
    Target(name="shard_map", num_cases=8_000, prepare=prepare_shard_map),
    Target(name="model_config", num_cases=10_000, prepare=prepare_config),
)
