"""Block expansion (LLaMA-Pro, https://arxiv.org/abs/2401.02415): copies of blocks that first change nothing.

A copy follows every k-th block. The last projections of its attention and of its MLP are zero, so both add zero to the
residual stream. The new model therefore computes the same function as the old one.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ascend_cpt.errors import CheckpointError
from ascend_cpt.model.parameters import list_hf_shapes
from ascend_cpt.model.sizes import read_sizes
from ascend_cpt.weights.dtypes import Array
from ascend_cpt.weights.safetensors_file import TensorInfo
from ascend_cpt.weights.sources import TensorSource

# The tensors that are zero in a new block.
ZERO_TENSORS = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """A block of the new model."""

    source: int
    """The block of the old model whose weights it has."""
    is_new: bool


def plan_blocks(num_layers: int, every: int) -> list[Block]:
    """Return the blocks of the model with a new block after every `every` blocks.

    Raises:
        CheckpointError: `every` does not divide the number of blocks.
    """
    if every < 1 or num_layers % every:
        divisors = ", ".join(str(k) for k in range(1, num_layers + 1) if num_layers % k == 0)
        raise CheckpointError(f"--every {every}: does not divide the {num_layers} blocks; choose one of {divisors}")
    blocks: list[Block] = []
    for layer in range(num_layers):
        blocks.append(Block(source=layer, is_new=False))
        if (layer + 1) % every == 0:
            blocks.append(Block(source=layer, is_new=True))
    return blocks


def expand_config(config: Mapping[str, Any], blocks: Sequence[Block]) -> dict[str, Any]:
    """Return config.json for the new model."""
    expanded = {**config, "num_hidden_layers": len(blocks)}
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and len(kinds) == config["num_hidden_layers"]:
        expanded["layer_types"] = [kinds[block.source] for block in blocks]
    return expanded


class ExpandedBlocks:
    """The tensors of the new model, by their Hugging Face names."""

    def __init__(self, source: TensorSource, config: Mapping[str, Any], blocks: Sequence[Block]) -> None:
        self._source, self._blocks = source, blocks
        self.path = source.path
        names = list_hf_shapes(read_sizes(config))
        self.tensors = {name: self._describe(name) for name in names}

    def _describe(self, name: str) -> TensorInfo:
        old_name, _ = self._locate(name)
        return dataclasses.replace(self._source.tensors[old_name], name=name)

    def read(self, name: str) -> Array:
        """Return a tensor of the new model."""
        old_name, is_zero = self._locate(name)
        tensor = self._source.read(old_name)
        if is_zero:
            tensor = np.zeros_like(tensor)
        return tensor

    def _locate(self, name: str) -> tuple[str, bool]:
        """Return the tensor of the old model to read for a tensor of the new one, and whether it becomes zero."""
        match = _LAYER.fullmatch(name)
        if match is None:
            return name, False
        block, rest = self._blocks[int(match[1])], match[2]
        return f"model.layers.{block.source}.{rest}", block.is_new and rest in ZERO_TENSORS
