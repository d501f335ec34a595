"""Sharding of parameters over ranks and stages."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ascend_cpt.plan.case import TrainingCase, split_layers, split_parts
from ascend_cpt.plan.slices import slice_parameters

MakeCase = Callable[..., TrainingCase]


def test_slices_of_a_stage(make_case: MakeCase) -> None:
    parts = {part.name: part for part in slice_parameters(make_case(), 0)}
    assert parts["embedding.word_embeddings.weight"].tensor_shape == (16000, 1024)
    assert parts["embedding.word_embeddings.weight"].stored_shape == (8000, 1024)
    assert parts["decoder.layers.0.self_attention.linear_proj.weight"].tensor_shape == (1024, 512)
    assert parts["decoder.layers.0.self_attention.linear_proj.weight"].stored_shape == (512, 512)
    norm = parts["decoder.layers.3.input_layernorm.weight"]
    assert norm.stored_shape == (1024,) and not norm.is_sharded
    assert "decoder.layers.4.mlp.linear_fc1.weight" not in parts and "output_layer.weight" not in parts


def test_tied_embedding_is_on_the_first_and_the_last_stage(make_case: MakeCase) -> None:
    case = make_case((1, 1, 4, 1), model={"tie_word_embeddings": True})
    with_embedding = [
        stage
        for stage in range(4)
        if "embedding.word_embeddings.weight" in {part.name for part in slice_parameters(case, stage)}
    ]
    assert with_embedding == [0, 3]


def test_threshold_applies_to_the_whole_parameter(make_case: MakeCase) -> None:
    small = {"hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 8, "head_dim": 32}
    parts = {part.name: part for part in slice_parameters(make_case((4, 8, 1, 1), model=small), 0)}
    projection = parts["decoder.layers.0.self_attention.linear_proj.weight"]  # 256 KB, of which a rank has 32
    assert (projection.tensor_shape, projection.stored_shape) == ((256, 32), (64, 32))


def test_no_sharding_if_disabled_or_rows_do_not_divide(make_case: MakeCase) -> None:
    whole = make_case(shards_optimizer=False)
    assert not any(part.is_sharded for part in slice_parameters(whole, 0))
    odd = make_case((3, 2, 2, 1))  # 16000 rows of the embedding are no multiple of 3
    assert not next(part for part in slice_parameters(odd, 0) if part.name.startswith("embedding")).is_sharded


@pytest.mark.parametrize(
    ("size", "projection", "norm"),
    # Observed in MindSpore 2.9.0: at most this many ranks, and not sharded if they do not divide the replicas.
    [(None, 256, 128), (2, 512, 512), (4, 256, 256), (8, 256, 128), (3, 1024, 1024), (16, 256, 128)],
)
def test_optimizer_shard_size(make_case: MakeCase, size: int | None, projection: int, norm: int) -> None:
    layout = (4, 2, 1, 1)
    case = make_case(layout, optimizer_shard_size=size, shard_threshold_bytes=0)
    parts = {part.name: part for part in slice_parameters(case, 0)}
    assert parts["decoder.layers.0.input_layernorm.weight"].stored_shape == (norm,)
    assert parts["decoder.layers.0.self_attention.linear_proj.weight"].stored_shape == (projection, 512)


@pytest.mark.parametrize("layout", [(2, 2, 2, 1), (1, 4, 2, 2), (8, 1, 1, 1), (1, 8, 8, 1)])
def test_stages_and_slices_add_up_to_the_model(make_case: MakeCase, layout: tuple[int, int, int, int]) -> None:
    case = make_case(layout)
    whole: dict[str, int] = {}
    for stage in range(case.num_stages):
        for part in slice_parameters(case, stage):
            cut = math.prod(part.shape) // part.num_tensor_elements
            assert cut in (1, layout[1])
            whole[part.name] = part.num_tensor_elements * cut
    assert sum(whole.values()) == case.num_parameters
    assert whole.keys() == case.parameters.keys()


@given(st.integers(1, 100), st.integers(1, 16))
def test_split_layers(num_layers: int, num_stages: int) -> None:
    if num_layers % num_stages:
        with pytest.raises(ValueError, match="layers"):
            split_layers(num_layers, num_stages)
    else:
        assert split_layers(num_layers, num_stages) == (num_layers // num_stages,) * num_stages


@pytest.mark.parametrize(
    ("layers_per_stage", "parts", "expected"),
    [
        ((4, 4), 2, {0: [0, 1, 4, 5], 1: [2, 3, 6, 7]}),
        ((5, 3), 2, {0: [0, 1, 2, 5, 6], 1: [3, 4, 7]}),
        ((2, 2, 2, 2), 1, {0: [0, 1], 3: [6, 7]}),
        ((3, 3), 3, {0: [0, 2, 4], 1: [1, 3, 5]}),
    ],
)
def test_interleaved_stages_have_several_parts_of_the_model(
    make_case: MakeCase, layers_per_stage: tuple[int, ...], parts: int, expected: dict[int, list[int]]
) -> None:
    num_layers = sum(layers_per_stage)
    case = dataclasses.replace(
        make_case((1, 1, len(layers_per_stage), 1), model={"num_hidden_layers": num_layers}, offset=[
            layers - num_layers // len(layers_per_stage) for layers in layers_per_stage]),
        interleave=parts,
    )  # fmt: skip
    for stage, layers in expected.items():
        assert [layer for layer in range(num_layers) if case.has_layer(stage, layer)] == layers
    assert all(
        sum(case.has_layer(stage, layer) for stage in range(case.num_stages)) == 1 for layer in range(num_layers)
    )


@given(st.integers(1, 5), st.integers(1, 4), st.lists(st.integers(0, 2), min_size=1, max_size=5))
def test_interleaved_layers_are_read_as_written(num_parts: int, share: int, more: list[int]) -> None:
    layers = tuple(num_parts * share + extra for extra in more)
    parts = split_parts(layers, num_parts)
    share = sum(layers) // (len(layers) * num_parts)
    offset: Any = [[number - share for number in part] for part in parts]
    assert split_layers(sum(layers), len(layers), offset if num_parts > 1 else offset[0], num_parts) == layers
