"""FLOPs, peaks, and the account of the data."""

from __future__ import annotations

import pytest

from ascend_cpt.monitor.accounting import DataAccount, PhaseSpan, is_tally_due
from ascend_cpt.monitor.flops import (
    PEAK_FLOPS,
    count_matmul_parameters,
    count_parameters,
    count_training_flops_per_token,
    find_peak_flops,
)
from ascend_cpt.monitor.record import to_values

LLAMA2_7B = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32,
}  # fmt: skip
QWEN3_8B = {
    "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
}  # fmt: skip


def test_parameters_are_those_of_the_published_models() -> None:
    norms = 65 * 4096
    assert count_parameters(LLAMA2_7B) + norms == 6_738_415_616
    head_norms = 36 * 2 * 128
    assert count_parameters(QWEN3_8B) + 73 * 4096 + head_norms == 8_190_735_360


def test_flops_of_a_layer_by_layer_count() -> None:
    # Llama 2 7B, per token, forward: 2 FLOPs a multiply-add in each matrix, and scores and mixing over 4096 tokens.
    layer = 2 * (4 * 4096 * 4096 + 3 * 4096 * 11008) + 2 * 2 * 4096 * 4096
    forward = 32 * layer + 2 * 4096 * 32000
    assert count_training_flops_per_token(LLAMA2_7B, 4096) == 3 * forward


def test_a_shared_embedding_counts_once_and_still_multiplies() -> None:
    tied = {**QWEN3_8B, "tie_word_embeddings": True}
    assert count_matmul_parameters(tied) == count_matmul_parameters(QWEN3_8B) == count_parameters(tied)
    assert count_training_flops_per_token(tied, 1024) == count_training_flops_per_token(QWEN3_8B, 1024)


@pytest.mark.parametrize("name", ["CPU", "Ascend910", "Ascend910B", "Ascend910B9", "", "ascend910b3"])
def test_an_unknown_device_has_no_peak(name: str) -> None:
    assert find_peak_flops(name) is None


def test_peaks_are_cores_times_clock() -> None:
    assert find_peak_flops("Ascend910B2") == pytest.approx(24 * 8192 * 1.8e9)
    assert find_peak_flops("Ascend910B3") == pytest.approx(20 * 8192 * 1.8e9)
    assert find_peak_flops("Ascend910B4") == pytest.approx(20 * 8192 * 1.5e9)
    assert all(2e14 < peak < 4e14 for peak in PEAK_FLOPS.values())


PHASES = [
    PhaseSpan(name="general", first_step=0, stop_step=6),
    PhaseSpan(name="qa", first_step=6, stop_step=10),
]


def count_rows(first_step: int, stop_step: int) -> dict[str, int]:
    """Two rows of web in each step, and one of qa from step 6 on."""
    return {"web": 2 * (stop_step - first_step), "qa": max(0, stop_step - max(first_step, 6))}


def make_account() -> DataAccount:
    return DataAccount(count_rows, PHASES, rows_per_epoch={"web": 10, "qa": 2}, seq_length=100)


def test_account_by_phase_and_source() -> None:
    record = make_account().tally(10)
    assert record.tokens == {"general": {"web": 1200}, "qa": {"web": 800, "qa": 400}}
    assert record.epochs == {"web": 2.0, "qa": 2.0}


@pytest.mark.parametrize("stops", [[1, 5, 6, 7, 10], [6, 10], [3, 10], [0, 10]])
def test_account_does_not_depend_on_when_it_was_asked(stops: list[int]) -> None:
    account = make_account()
    for stop in stops:
        record = account.tally(stop)
        assert record == make_account().tally(stop)


@pytest.mark.parametrize("stop", [3, 6, 8])
def test_a_recorded_account_goes_on(stop: int) -> None:
    account = make_account()
    account.restore(to_values(make_account().tally(stop)))
    assert account.tally(10) == make_account().tally(10)


def test_the_account_is_due_at_the_end_of_phases_and_not_too_often() -> None:
    due = [step for step in range(1, 1_000_001) if is_tally_due(step, 1_000_000, PHASES[:1])]
    assert 6 in due and due[-1] == 1_000_000 and len(due) == 201
