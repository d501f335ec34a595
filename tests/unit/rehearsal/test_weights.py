"""The random start weights are a Hugging Face folder as published models are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ascend_cpt.rehearsal.weights import write_random_folder
from ascend_cpt.weights.dtypes import to_float32
from ascend_cpt.weights.hf_folder import HfFolder

MODEL: dict[str, Any] = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "initializer_range": 0.06,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}


def read(folder: HfFolder, name: str) -> np.ndarray:
    return to_float32(folder.read(name), folder.tensors[name].dtype)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
        {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
    ],
)
def test_folder_has_every_tensor_of_the_model(changes: dict[str, Any], tmp_path: Path) -> None:
    write_random_folder({**MODEL, **changes}, tmp_path / "start", seed=1)
    folder = HfFolder(tmp_path / "start")
    folder.check()
    folder.check_model({**MODEL, **changes})


def test_weights_have_the_spread_of_the_configuration(tmp_path: Path) -> None:
    write_random_folder(MODEL, tmp_path / "start", seed=1)
    folder = HfFolder(tmp_path / "start")
    assert {info.dtype for info in folder.tensors.values()} == {"BF16"}
    assert read(folder, "model.embed_tokens.weight").std() == pytest.approx(0.06, rel=0.05)
    norm = read(folder, "model.norm.weight")
    assert norm.mean() == pytest.approx(1, abs=0.1) and norm.std() > 0.05
    assert len(list((tmp_path / "start").glob("*.safetensors"))) == 1


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_random_folder(MODEL, tmp_path / name, seed=seed)
    a, b, c = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "abc")
    assert a == b
    assert a != c
