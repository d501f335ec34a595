"""Compares logits from MindFormers' network with an independent computation from the same files."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ascend_cpt.weights.dtypes import to_float32
from ascend_cpt.weights.forward import compute_logits
from ascend_cpt.weights.hf_folder import HfFolder

# Both use float32. Measured differences are below 1e-5 for logits with a standard deviation near 1.
LOGITS_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class LogitsReport:
    """The difference between two computations of the same logits."""

    reference: str
    """`transformers` or `NumPy`."""
    max_difference: float
    """Largest absolute difference, as a multiple of the standard deviation of the logits."""

    @property
    def is_equal(self) -> bool:
        return self.max_difference < LOGITS_TOLERANCE


def compare_logits(path: Path, *, length: int = 32, seed: int = 0) -> LogitsReport:
    """Compare float32 CPU logits for random tokens (2, `length`) with transformers, or with NumPy if torch is missing.

    Raises:
        CheckpointError: when the folder is damaged or not supported.
    """
    from ascend_cpt.backend.inference.load_weights import load_hf
    from ascend_cpt.backend.inference.network import InferenceNetwork

    folder = HfFolder(path)
    folder.check()
    tokens = np.random.default_rng(seed).integers(0, folder.sizes.vocab_size, (2, length)).astype(np.int32)
    has_torch = find_spec("torch") is not None and find_spec("transformers") is not None
    expected = _compute_with_transformers(path, tokens) if has_torch else _compute_with_numpy(folder, tokens)
    network = InferenceNetwork(folder.config, length=length)
    load_hf(network.cell, path)
    logits = network.compute_logits(tokens)
    difference = float(np.abs(logits - expected).max() / expected.std())
    return LogitsReport(reference="transformers" if has_torch else "NumPy", max_difference=difference)


def _compute_with_numpy(folder: HfFolder, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    def read(name: str) -> NDArray[np.float32]:
        return to_float32(folder.read(name), folder.tensors[name].dtype)

    return compute_logits(folder.sizes, read, tokens)


def _compute_with_transformers(path: Path, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    torch, transformers = import_module("torch"), import_module("transformers")
    auto_model = transformers.AutoModelForCausalLM
    model = auto_model.from_pretrained(path, torch_dtype=torch.float32, local_files_only=True).eval()
    with torch.no_grad():
        logits: NDArray[np.float32] = model(input_ids=torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    return logits
