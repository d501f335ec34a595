"""PEFT's adapters in the reference folder, and the same adapters as MindFormers' parameters."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from ascend_cpt.model.lora import LORA_A, LORA_B, LoraSettings, list_adapted_layers
from ascend_cpt.model.sizes import ModelSizes, read_config, read_sizes
from ascend_cpt.weights.dtypes import Array
from ascend_cpt.weights.safetensors_file import TensorInfo

REFERENCE = Path(__file__).resolve().parent / "reference"
KINDS = ["all", "some_stabilized", "with_bias"]
PREFIX = "base_model.model."


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Adapters of a reference model as PEFT wrote them, and what PEFT computes with them."""

    folder: Path
    model: Path
    peft_config: dict[str, Any]
    settings: LoraSettings
    sizes: ModelSizes
    tensors: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]

    def join(self, prefix: str = "") -> dict[str, np.ndarray]:
        """Return the parameters of MindFormers' layers, or with `prefix` "gradient " their gradients."""
        source = {key.removeprefix(prefix): value for key, value in self.expected.items()} if prefix else self.tensors
        joined = {}
        for layer in list_adapted_layers(self.sizes, self.settings):
            modules = [name.removesuffix(".weight") for name in layer.group.hf]
            found_a, found_b = [], []
            for module, (rows, _) in zip(modules, layer.group.row.list_hf_shapes(self.sizes), strict=True):
                lora_a = source.get(f"{PREFIX}{module}.lora_A.weight")
                found_a += [] if lora_a is None else [lora_a]
                zeros = np.zeros((rows, self.settings.rank), np.float32)
                found_b.append(source.get(f"{PREFIX}{module}.lora_B.weight", zeros))
            joined[layer.name + LORA_A] = np.concatenate(found_a)
            joined[layer.name + LORA_B] = layer.group.row.layout.join(found_b, self.sizes)
        return joined


class Tensors:
    """A source of float32 tensors."""

    def __init__(self, tensors: dict[str, np.ndarray]) -> None:
        self.path = Path("tensors")
        self._tensors = tensors
        self.tensors = {
            name: TensorInfo(name=name, dtype="F32", shape=tensor.shape) for name, tensor in tensors.items()
        }

    def read(self, name: str) -> Array:
        return self._tensors[name]


def read_reference(kind: str) -> Reference:
    folder = REFERENCE / "lora" / kind
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    model = REFERENCE / config["base_model_name_or_path"]
    return Reference(
        folder=folder,
        model=model,
        peft_config=config,
        settings=LoraSettings(
            rank=config["r"],
            alpha=float(config["lora_alpha"]),
            targets=tuple(config["target_modules"]),
            rank_stabilized=config["use_rslora"],
        ),
        sizes=read_sizes(read_config(model)),
        tensors=load_file(folder / "adapter_model.safetensors"),
        expected=dict(np.load(folder / "expected.npz")),
    )
