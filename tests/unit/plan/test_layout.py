"""Layouts and switches that do not fit are reported."""

from __future__ import annotations

from typing import Any

import pytest

from ascend_cpt.config.parallel_layout import ParallelLayout
from ascend_cpt.plan.layout import find_layout_problems, find_switch_problems

MODEL = {
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 12288,
    "vocab_size": 151936,
    "num_hidden_layers": 36,
}


def make_layout(data: int = 1, tensor: int = 1, pipeline: int = 1, context: int = 1) -> ParallelLayout:
    return ParallelLayout(
        world_size=data * tensor * pipeline * context,
        data_parallel=data,
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
        context_parallel=context,
    )


@pytest.mark.parametrize(
    ("sizes", "model", "words"),
    [
        ({"tensor": 3}, {}, "model_parallel 3 does not divide num_attention_heads 32"),
        ({"tensor": 16}, {}, "model_parallel 16 does not divide num_key_value_heads 8"),
        ({"pipeline": 5}, {}, "pipeline_stage 5 does not divide num_hidden_layers 36"),
        ({"pipeline": 5}, {"offset": [0, 0, 0, 0, 0]}, "offset"),
        ({"pipeline": 5}, {"offset": [0, 1]}, "offset has 2 values"),
        ({"pipeline": 1}, {"offset": [1, -1]}, "pipeline_stage is 1, but model.model_config.offset has 2 values"),
        ({"context": 3}, {}, "context_parallel 3 does not divide seq_length 4096"),
        ({}, {"hidden_size": 4097}, "num_attention_heads 32 does not divide hidden_size 4097"),
        ({"tensor": 4}, {"vocab_size": 151_933}, "does not divide vocab_size 151933"),
    ],
)
def test_layout_that_does_not_divide_is_reported(sizes: dict[str, int], model: dict[str, Any], words: str) -> None:
    problems = find_layout_problems({**MODEL, **model}, make_layout(**sizes), 4096)
    assert any(words in problem for problem in problems)


def test_layout_that_divides_has_no_problem() -> None:
    assert not find_layout_problems(MODEL, make_layout(2, 8, 4), 4096)
    assert not find_layout_problems({**MODEL, "offset": [0, 1, 0, 0, 0]}, make_layout(pipeline=5), 4096)


def test_switches_that_mindformers_refuses_are_reported() -> None:
    layout = make_layout(2, 2)
    assert not find_switch_problems(MODEL, layout, 4096, sequence_parallel=True)
    (problem,) = find_switch_problems(MODEL, make_layout(2), 4096, sequence_parallel=True)
    assert "use_seq_parallel" in problem
    (problem,) = find_switch_problems(MODEL, layout, 4095, sequence_parallel=True)
    assert "4095" in problem
    (problem,) = find_switch_problems(MODEL, make_layout(3, 2, 2, 2), 4096, sequence_parallel=True)
    assert "a pipeline stage has 12 devices" in problem
    (problem,) = find_switch_problems(MODEL, make_layout(8, 3), 4096, sequence_parallel=False)
    assert "model_parallel 3 × context_parallel 1 does not divide a node's 8 devices" in problem
    (problem,) = find_switch_problems(MODEL, make_layout(8, 1, 1, 3), 4095, sequence_parallel=False)
    assert "model_parallel 1 × context_parallel 3 does not divide a node's 8 devices" in problem
    assert not find_switch_problems(MODEL, make_layout(3, 8), 4096, sequence_parallel=True)
    (problem,) = find_switch_problems(MODEL, make_layout(3, 2), 4096, sequence_parallel=True)
    assert "not on 6 devices" in problem
    assert not find_switch_problems(MODEL, make_layout(4, 2, 4, 1), 4096, sequence_parallel=True)
    split = make_layout(2, 1, 1, 2)
    assert not find_switch_problems(MODEL, split, 4096, sequence_parallel=False)
    (problem,) = find_switch_problems({**MODEL, "use_flash_attention": False}, split, 4096, sequence_parallel=False)
    assert "context_parallel 2 needs flash attention" in problem
    compressed = {**MODEL, "use_attn_mask_compression": True}
    (problem,) = find_switch_problems(compressed, layout, 1024, sequence_parallel=False)
    assert "use_attn_mask_compression" in problem


@pytest.mark.parametrize(
    ("stages", "offset", "recompute", "expected"),
    [
        (2, [0, 0], [4, True], ""),
        (2, 0, True, ""),
        (
            2,
            [0, 1, 1, -2],
            [1, 0, 0, 0],
            "pipeline_stage is 2, but model.model_config.offset has 4 values and recompute_config.recompute has 4 "
            "values; give one value per stage (the sum of offset is 0), or set offset to 0 and recompute to True",
        ),
        (
            4,
            None,
            [1, 0],
            "pipeline_stage is 4, but recompute_config.recompute has 2 values; give one value per stage, or set "
            "recompute to True",
        ),
        (
            5,
            [0, 0],
            False,
            "pipeline_stage is 5, but model.model_config.offset has 2 values; give one value per stage (the sum of "
            "offset is 1)",
        ),
        (
            2,
            [1, 0],
            False,
            "model.model_config.offset [1, 0] gives [19, 18] layers per stage, but num_hidden_layers is 36; every "
            "stage needs one, and the sum of offset is 0",
        ),
    ],
)
def test_lists_by_stage_that_do_not_fit_are_one_line(stages: int, offset: Any, recompute: Any, expected: str) -> None:
    model = {**MODEL, "offset": offset}
    problems = find_layout_problems(model, make_layout(pipeline=stages), 4096, recompute=recompute)
    assert problems == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("stages", "parts", "offset", "recompute", "expected"),
    [
        (2, 2, 0, [4, True], ""),
        (4, 3, None, True, ""),
        (5, 2, [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]], True, ""),
        (
            8,
            2,
            0,
            True,
            "pp_interleave_num 2: the parts of the stages have [[2, 2, 2, 2, 2, 2, 2, 2], [2, 2, 2, 2, 2, 2, 2, 2]] "
            "layers, but num_hidden_layers is 36; every part needs a layer, and the sum of model.model_config.offset "
            "must be 4",
        ),
        (
            8,
            2,
            [0] * 8,
            True,
            "pp_interleave_num is 2: model.model_config.offset needs 2 lists of 8 values, with the sum 4",
        ),
        (
            2,
            2,
            [[0, -1], [0, 1]],
            True,
            "pp_interleave_num 2: model.model_config.offset [[0, -1], [0, 1]] divides a stage's layers unevenly; "
            "use [[0, 0], [0, 0]]",
        ),
        (
            4,
            2,
            0,
            [1, 0, 0],
            "pipeline_stage is 4, but recompute_config.recompute has 3 values; give one value per stage, also with "
            "pp_interleave_num, or set recompute to True",
        ),
        (
            4,
            10,
            0,
            True,
            "pipeline_stage 4 × model.model_config.pp_interleave_num 10 is more than num_hidden_layers 36",
        ),
    ],
)
def test_layers_of_interleaved_stages_are_checked(
    stages: int, parts: int, offset: Any, recompute: Any, expected: str
) -> None:
    model = {**MODEL, "offset": offset, "pp_interleave_num": parts}
    problems = find_layout_problems(model, make_layout(pipeline=stages), 4096, recompute=recompute)
    assert problems == ([expected] if expected else [])
