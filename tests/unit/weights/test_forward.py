"""The NumPy forward pass, compared with checked-in logits of transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ascend_cpt.weights.dtypes import to_float32
from ascend_cpt.weights.forward import compute_logits
from ascend_cpt.weights.hf_folder import HfFolder

REFERENCE = Path(__file__).resolve().parents[2] / "reference"
MODELS = ["qwen3", "qwen3_tied", "llama2", "llama3", "llama31", "llama32_tied", "mistral", "qwen25_tied"]
MODELS += ["qwen3_moe", "qwen3_moe_tied"]
MODELS += ["qwen3_yarn", "llama_yarn", "qwen25_yarn", "mistral_yarn", "qwen3_moe_yarn"]


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_those_of_transformers(name: str) -> None:
    folder = HfFolder(REFERENCE / name)
    folder.check()
    expected = np.load(REFERENCE / name / "expected.npz")

    def read(tensor: str) -> np.ndarray:
        return to_float32(folder.read(tensor), folder.tensors[tensor].dtype)

    logits = compute_logits(folder.sizes, read, expected["tokens"])
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected["logits"], atol=2e-5)
