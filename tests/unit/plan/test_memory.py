"""The memory model compared with peaks of MindSpore 2.9.0 on its simulated device, and its parts by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ascend_cpt.plan import slices
from ascend_cpt.plan.case import TrainingCase
from ascend_cpt.plan.memory import estimate_memory

MakeCase = Callable[..., TrainingCase]
NO_RECOMPUTE = {"recompute": False}
LLAMA = {"model": {"model_type": "llama"}}
SHORT = {"num_micro_batches": 2, "model": {"num_hidden_layers": 2}}
SELECTED = {"num_micro_batches": 2, "model": {"num_hidden_layers": 4}, "recomputes_selected": True, "recompute": False}
ONE_STAGE = (2, 2, 1, 1)

# (layout, changes, stage, peak in bytes): the model of conftest.py, `tools/plan.py --simulate`. docs/planning.md shows
# the same table.
SIMULATED: list[tuple[tuple[int, int, int, int], dict[str, Any], int, int]] = [
    ((2, 2, 2, 1), {}, 0, 727_268_352),
    ((2, 2, 2, 1), {}, 1, 1_599_392_256),
    ((2, 2, 2, 1), NO_RECOMPUTE, 0, 1_485_968_384),
    ((2, 2, 2, 1), NO_RECOMPUTE, 1, 2_163_414_016),
    ((2, 2, 2, 1), {"seq_length": 8192}, 0, 909_995_520),
    ((2, 2, 2, 1), {"seq_length": 8192}, 1, 2_691_202_048),
    ((2, 2, 2, 1), {"model": {"head_dim": 128}, **NO_RECOMPUTE}, 0, 1_800_565_760),
    ((2, 2, 2, 1), {**LLAMA, **NO_RECOMPUTE}, 0, 1_383_670_784),
    ((1, 2, 2, 1), {}, 0, 1_242_195_456),
    ((8, 1, 1, 1), {}, 0, 3_529_520_128),
    ((2, 2, 2, 2), {}, 0, 512_345_088),
    ((2, 2, 4, 1), {}, 0, 516_856_832),
    (ONE_STAGE, {"num_micro_batches": 1, **NO_RECOMPUTE}, 0, 2_629_258_240),
    (ONE_STAGE, NO_RECOMPUTE, 0, 3_274_852_864),
    ((1, 2, 2, 1), {}, 1, 1_848_705_536),
    ((2, 2, 2, 1), {"sequence_parallel": False}, 0, 773_419_520),
    (ONE_STAGE, {**SHORT, "compresses_mask": False}, 0, 1_711_198_208),
    ((2, 2, 1, 2), {**SHORT, **NO_RECOMPUTE}, 0, 1_530_307_584),
    (
        (2, 2, 2, 1),
        {**SHORT, "model": {"num_hidden_layers": 4}, "recomputes_selected": True, **NO_RECOMPUTE},
        0,
        756_696_576,
    ),
    (
        (1, 2, 2, 1),
        {"num_micro_batches": 2, "model": {"num_hidden_layers": 2, "tie_word_embeddings": True}},
        1,
        1_627_403_264,
    ),
]


@pytest.mark.parametrize(("layout", "changes", "stage", "peak_bytes"), SIMULATED)
def test_peaks_match_the_simulated_device(
    make_case: MakeCase, layout: tuple[int, int, int, int], changes: dict[str, Any], stage: int, peak_bytes: int
) -> None:
    memory = estimate_memory(make_case(layout, **changes))[stage]
    assert memory.peak_bytes == pytest.approx(peak_bytes, rel=0.02)


SMALL_QWEN2 = {
    "model_type": "qwen2",
    "vocab_size": 8192,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
}


@pytest.mark.parametrize(
    ("layout", "model", "num_micro_batches", "peak_bytes"),
    [
        ((2, 1, 1, 2), {}, 1, 331_708_416),
        ((2, 1, 2, 2), {}, 2, 313_768_448),
        # With one data-parallel rank no logits are gathered.
        ((1, 2, 2, 2), {"vocab_size": 8196, "num_key_value_heads": 2}, 4, 119_409_152),
    ],
)
def test_context_parallel_gathers_logits_only_with_data_parallel(
    make_case: MakeCase,
    layout: tuple[int, int, int, int],
    model: dict[str, Any],
    num_micro_batches: int,
    peak_bytes: int,
) -> None:
    case = make_case(
        layout,
        model={**SMALL_QWEN2, **model},
        recompute=False,
        seq_length=2048,
        num_micro_batches=num_micro_batches,
        sequence_parallel=False,
    )
    assert estimate_memory(case)[-1].peak_bytes == pytest.approx(peak_bytes, rel=0.04)


QWEN3_8B = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
    "head_dim": 128,
}


@pytest.mark.parametrize(
    ("chunks", "num_micro_batches", "peak_bytes"),
    [
        (1, 2, 25_815_936_000),
        (8, 2, 8_491_380_224),
        (1, 1, 23_423_938_048),
        (2, 1, 12_726_012_416),
        (4, 1, 8_992_276_992),
    ],
)
def test_peaks_with_a_loss_in_parts_match_the_simulated_device(
    make_case: MakeCase, chunks: int, num_micro_batches: int, peak_bytes: int
) -> None:
    changes = {"model": QWEN3_8B, "seq_length": 32768, "num_micro_batches": num_micro_batches, "loss_chunks": chunks}
    memory = estimate_memory(make_case((2, 4, 1, 1), **changes))[0]
    assert memory.peak.name == "loss"
    assert memory.peak_bytes == pytest.approx(peak_bytes, rel=0.02)


def test_static_memory_by_hand(make_case: MakeCase) -> None:
    case = make_case()
    memory = estimate_memory(case)[0]
    layer = 1024 * (16 + 16) * 64 + 16 * 64 * 1024 + 3 * 1024 * 3072
    sharded = (32000 * 1024 + 4 * layer) // 4  # tensor 2 × data 2
    norms = 4 * (2 * 1024 + 2 * 64)
    assert memory.num_stored_parameters == sharded + norms
    assert memory.weights_bytes == 4 * (sharded + norms)
    assert memory.optimizer_bytes == 2 * memory.weights_bytes
    assert memory.accumulated_bytes == 4 * (2 * sharded + norms)


def test_one_micro_batch_needs_no_accumulation_buffer(make_case: MakeCase) -> None:
    assert estimate_memory(make_case(ONE_STAGE, num_micro_batches=1))[0].accumulated_bytes == 0


def test_more_data_parallel_ranks_use_less_memory_each(make_case: MakeCase) -> None:
    peaks = [estimate_memory(make_case((data, 2, 2, 1)))[0].static_bytes for data in (1, 2, 4, 8)]
    assert peaks == sorted(peaks, reverse=True)


def test_recomputation_uses_less_memory(make_case: MakeCase) -> None:
    kept = estimate_memory(make_case(recompute=False))[0].training.activations_bytes
    assert estimate_memory(make_case())[0].training.activations_bytes < kept / 3


def test_earlier_stages_keep_more_micro_batches(make_case: MakeCase) -> None:
    stages = estimate_memory(make_case((1, 1, 8, 1), num_micro_batches=16))
    saved = [stage.training.activations_bytes for stage in stages[:-1]]
    assert saved == sorted(saved, reverse=True) and saved[0] > saved[-1]


def test_wrong_slice_rule_changes_the_memory(make_case: MakeCase, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, changes, stage, peak_bytes = SIMULATED[0]
    monkeypatch.delitem(slices.TENSOR_AXES, "mlp.linear_fc1.weight")
    memory = estimate_memory(make_case(layout, **changes))[stage]
    assert memory.peak_bytes != pytest.approx(peak_bytes, rel=0.02)
