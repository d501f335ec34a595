"""Names and shapes of a model's tensors in Hugging Face and MindFormers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ascend_cpt.model.families import FAMILIES, HF_OUTPUT, Row
from ascend_cpt.model.sizes import ModelSizes
from ascend_cpt.model.tensor_layout import Shape
from ascend_cpt.model.unsupported import refuse_family


@dataclass(frozen=True, kw_only=True)
class Group:
    """The unit of conversion: one MindFormers tensor and the Hugging Face tensors it consists of."""

    row: Row
    mindformers: str
    hf: tuple[str, ...]


def list_groups(sizes: ModelSizes) -> list[Group]:
    """Return all of a model's groups in table order: before the layers, layer by layer, after the layers.

    Models with tied embeddings have no output-layer tensor.

    Raises:
        ConfigError: the family has no table.
    """
    if sizes.family not in FAMILIES:
        raise refuse_family(sizes.family, FAMILIES)
    rows = [row for row in FAMILIES[sizes.family] if not (sizes.tie_word_embeddings and row.hf[0][0] == HF_OUTPUT)]
    per_layer = [row for row in rows if row.is_per_layer]
    first = rows.index(per_layer[0])
    before = [_make_group(row, sizes, None) for row in rows[:first]]
    layers = [_make_group(row, sizes, layer) for layer in range(sizes.num_layers) for row in per_layer]
    after = [_make_group(row, sizes, None) for row in rows[first:] if not row.is_per_layer]
    return before + layers + after


def _make_group(row: Row, sizes: ModelSizes, layer: int | None) -> Group:
    return Group(row=row, mindformers=row.mindformers.format(layer), hf=tuple(row.list_hf_names(sizes, layer)))


def list_hf_shapes(sizes: ModelSizes) -> dict[str, Shape]:
    """Return name → shape for every Hugging Face tensor in a model."""
    return {
        name: shape
        for group in list_groups(sizes)
        for name, shape in zip(group.hf, group.row.list_hf_shapes(sizes), strict=True)
    }


def list_mindformers_shapes(sizes: ModelSizes) -> dict[str, Shape]:
    """Return name → shape for every MindFormers tensor in a model."""
    return {
        group.mindformers: group.row.layout.join_shapes(group.row.list_hf_shapes(sizes)) for group in list_groups(sizes)
    }


def count_parameters(sizes: ModelSizes) -> int:
    """Return a model's number of parameters, counting tied embeddings once."""
    return sum(math.prod(shape) for shape in list_mindformers_shapes(sizes).values())


def count_active_parameters(sizes: ModelSizes) -> int:
    """Return the number of parameters that compute one token: without the experts that the router does not choose."""
    if sizes.experts is None:
        return count_parameters(sizes)
    per_expert = 3 * sizes.hidden_size * sizes.experts.intermediate_size
    num_idle = sizes.experts.num_experts - sizes.experts.num_per_token
    return count_parameters(sizes) - sizes.num_layers * num_idle * per_expert
