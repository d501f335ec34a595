"""Upcycling: a mixture of experts made from a dense model has its logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ascend_cpt.errors import ConfigError
from ascend_cpt.weights.convert import Options, Upcycling, upcycle
from ascend_cpt.weights.dtypes import to_float32
from ascend_cpt.weights.forward import compute_logits
from ascend_cpt.weights.hf_folder import HfFolder

REFERENCE = Path(__file__).resolve().parents[2] / "reference"


def make(target: Path, dense: str = "qwen3", *, num_per_token: int = 3, noise: float = 0.0, seed: int = 0) -> HfFolder:
    upcycling = Upcycling(num_experts=5, num_per_token=num_per_token, noise=noise, seed=seed)
    upcycle(HfFolder(REFERENCE / dense), target, upcycling, Options())
    folder = HfFolder(target)
    folder.check()
    return folder


def compute(folder: HfFolder) -> np.ndarray:
    tokens = np.load(REFERENCE / "qwen3/expected.npz")["tokens"]
    return compute_logits(folder.sizes, lambda name: to_float32(folder.read(name), folder.tensors[name].dtype), tokens)


@pytest.mark.parametrize("dense", ["qwen3", "qwen3_tied"])
@pytest.mark.parametrize("num_per_token", [1, 3])
def test_logits_are_those_of_the_dense_model(tmp_path: Path, dense: str, num_per_token: int) -> None:
    folder = make(tmp_path / "mixture", dense, num_per_token=num_per_token)
    np.testing.assert_allclose(compute(folder), compute(HfFolder(REFERENCE / dense)), atol=1e-5)
    experts = folder.sizes.experts
    assert experts is not None and (experts.num_experts, experts.num_per_token) == (5, num_per_token)


def test_routers_are_random_and_reproducible(tmp_path: Path) -> None:
    first, again, other = (make(tmp_path / str(index), seed=index // 2) for index in range(3))
    router = "model.layers.{}.mlp.gate.weight"
    weights = [
        to_float32(first.read(router.format(layer)), first.tensors[router.format(layer)].dtype) for layer in (0, 1)
    ]
    assert np.stack(weights).std() == pytest.approx(0.02, rel=0.15)
    assert not np.array_equal(*weights)
    assert (first.path / "model.safetensors").read_bytes() == (again.path / "model.safetensors").read_bytes()
    assert not np.array_equal(first.read(router.format(0)), other.read(router.format(0)))


def test_noise_makes_the_experts_different(tmp_path: Path) -> None:
    folder = make(tmp_path / "mixture", noise=0.1)
    name = "model.layers.0.mlp.experts.{}.up_proj.weight"
    dense = HfFolder(REFERENCE / "qwen3").read("model.layers.0.mlp.up_proj.weight").astype(np.float32)
    noise = [folder.read(name.format(expert)).astype(np.float32) - dense for expert in (0, 1)]
    assert noise[0].std() / dense.std() == pytest.approx(0.1, rel=0.1)
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.1


def test_other_families_and_impossible_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model_type llama cannot be upcycled"):
        make(tmp_path / "llama", "llama3")
    with pytest.raises(ConfigError, match="num_experts_per_tok 6 is above num_experts 5"):
        make(tmp_path / "many", num_per_token=6)
    with pytest.raises(ConfigError, match="--noise"):
        make(tmp_path / "noise", noise=-1.0)
    assert not list(tmp_path.iterdir())
