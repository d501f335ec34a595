"""Attention within documents: two documents in a row give the same results as in separate rows.

Tests run in the order of file names: this one runs after test_kernels.py, which needs an unset MindSpore context.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ms = pytest.importorskip("mindspore")
pytest.importorskip("mindformers")

from mindformers import build_context
from mindformers.models.build_model import build_network
from mindformers.tools.register import MindFormerConfig
from mindformers.wrapper.wrapper import DataOrderWrapperCell
from mindspore import Tensor
from safetensors.numpy import load_file

from ascend_cpt.backend.cpu import install_cpu_kernels
from ascend_cpt.backend.models import register_models
from ascend_cpt.data.packed.network_inputs import IGNORE_LABEL, RowFormat
from ascend_cpt.model.sizes import read_sizes
from ascend_cpt.run.mindformers_yaml import BOUNDARY_SETTINGS
from ascend_cpt.weights.mapping import to_mindformers

REFERENCE = Path(__file__).resolve().parents[2] / "reference"
LENGTH, BOUNDARY, EOD, PAD = 32, 20, 126, 127
TYPES = dict.fromkeys(("params_dtype", "compute_dtype", "layernorm_compute_dtype", "rotary_dtype"), "float32")

pytestmark = pytest.mark.parametrize("name", ["qwen3", "llama31"])


@pytest.fixture(scope="module", autouse=True)
def mindformers_context() -> None:
    install_cpu_kernels(keep_float16_cast=False)
    register_models()
    context = {"mode": 0, "device_target": "CPU", "device_id": 0}
    build_context(MindFormerConfig(use_legacy=False, use_parallel=False, run_mode="train", context=context))


@cache
def build(name: str, boundaries: str) -> Any:
    """Return the loss of a reference model as a function of the inputs of `RowFormat`, and the network's weights."""
    folder = REFERENCE / name
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    fields = {key: value for key, value in config.items() if key not in ("dtype", "transformers_version")}
    settings = {
        "seq_length": LENGTH,
        "pad_token_id": PAD,
        "hidden_dropout": 0.0,
        **BOUNDARY_SETTINGS[boundaries],
        **TYPES,
    }
    network = build_network(MindFormerConfig(model_config={**fields, **settings}))
    parameters = {parameter.name: parameter for parameter in network.get_parameters()}
    weights = {key: value.astype(np.float32) for key, value in load_file(folder / "model.safetensors").items()}
    for key, weight in to_mindformers(weights, read_sizes(config)).items():
        parameters[key].set_data(Tensor(weight))
    network.set_train(True)
    ordered = DataOrderWrapperCell(list(make_format(boundaries).columns), network)

    def compute_loss(*inputs: Tensor) -> Tensor:
        return ordered(*inputs)[0]

    (embedding,) = (parameter for key, parameter in parameters.items() if "word_embeddings" in key)
    return ms.value_and_grad(compute_loss, None, [embedding])


def make_format(boundaries: str) -> RowFormat:
    return RowFormat(seq_length=LENGTH, pad_id=PAD, eod_id=EOD, boundaries=boundaries)


def make_row() -> np.ndarray:
    """Return a row of two documents: ids 0 to 59, then ids 60 to 119."""
    generator = np.random.default_rng(0)
    first, second = generator.integers(0, 60, BOUNDARY - 1), generator.integers(60, 120, LENGTH + 1 - BOUNDARY)
    return np.concatenate([first, [EOD], second]).astype(np.int32)


def evaluate(
    name: str, boundaries: str, row: np.ndarray, counted: slice = slice(None)
) -> tuple[float, int, np.ndarray]:
    """Return the mean loss over the `counted` labels of a row, their number, and the gradient of the embedding."""
    columns = [column.copy() for column in make_format(boundaries).make(row, 0)]
    keep = np.zeros(LENGTH, bool)
    keep[counted] = True
    columns[1][~keep] = IGNORE_LABEL
    loss, (gradient,) = build(name, boundaries)(*(Tensor(column[None]) for column in columns))
    return float(loss.asnumpy().reshape(-1)[0]), int((columns[1] != IGNORE_LABEL).sum()), gradient.asnumpy()


def test_loss_of_two_documents_equals_that_of_separate_rows(name: str) -> None:
    row = make_row()
    losses, counts = [], []
    for part in (row[: BOUNDARY + 1], row[BOUNDARY:]):
        padded = np.pad(part, (0, LENGTH + 1 - len(part)), constant_values=PAD)
        loss, count, _ = evaluate(name, "none", padded)
        losses.append(loss)
        counts.append(count)
    assert counts == [BOUNDARY, LENGTH - BOUNDARY]
    expected = float(np.average(losses, weights=counts))
    assert evaluate(name, "mask", row)[0] == pytest.approx(expected, abs=2e-6)
    assert abs(evaluate(name, "none", row)[0] - expected) > 1e-3, "across documents the loss differs"


def test_gradients_stop_at_the_boundary(name: str) -> None:
    row = make_row()
    of_the_first = np.unique(row[: BOUNDARY - 1])
    within = evaluate(name, "mask", row, slice(BOUNDARY, None))[2]
    across = evaluate(name, "none", row, slice(BOUNDARY, None))[2]
    assert not within[of_the_first].any()
    assert across[of_the_first].any(axis=-1).all()
    assert within[row[BOUNDARY:-1]].any(axis=-1).all()
