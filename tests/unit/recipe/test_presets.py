"""Values of the presets, compared with their sources."""

from __future__ import annotations

import pytest

from ascend_cpt.config.schema import BatchScalingConfig, ScheduleConfig
from ascend_cpt.recipe.presets import resolve_schedule


def resolve_preset(config: ScheduleConfig, *, num_epochs: float = 1.0) -> tuple[float, float, int, list[str]]:
    schedule, notes = resolve_schedule(config, total_steps=1000, tokens_per_step=4_000_000, num_epochs=num_epochs)
    return schedule.peak_lr, schedule.final_lr, schedule.warmup_steps, notes


def test_reuse() -> None:
    peak, final, warmup, _ = resolve_preset(ScheduleConfig(preset="reuse", base_final_lr=4.5e-5))
    assert (peak, final, warmup) == (4.5e-5, pytest.approx(4.5e-7), 0)


def test_reuse_warns_of_a_warmup() -> None:
    *_, warmup, notes = resolve_preset(ScheduleConfig(preset="reuse", peak_lr=1e-5, warmup_share=0.01))
    assert warmup == 10 and any(note.startswith("warning: preset reuse has no warmup") for note in notes)


def test_rewarm() -> None:
    peak, final, warmup, _ = resolve_preset(ScheduleConfig(preset="rewarm", base_peak_lr=3e-4))
    assert (peak, final, warmup) == (pytest.approx(1.5e-4), pytest.approx(1.5e-5), 10)


@pytest.mark.parametrize(("num_epochs", "warmup"), [(0.4, 10), (1, 10), (3, 30), (2.5, 30)])
def test_gentle_has_a_warmup_of_one_percent_per_epoch(num_epochs: float, warmup: int) -> None:
    config = ScheduleConfig(preset="gentle", base_peak_lr=3e-4)
    schedule, notes = resolve_schedule(config, total_steps=1000, tokens_per_step=10_000_000, num_epochs=num_epochs)
    assert (schedule.peak_lr, schedule.final_lr, schedule.warmup_steps) == (
        pytest.approx(3e-5),
        pytest.approx(3e-6),
        warmup,
    )
    assert not any("short" in note for note in notes)


@pytest.mark.parametrize(
    ("tokens", "num_epochs", "warmup"), [(4e9, 1, 25), (4e9, 3, 30), (1e9, 1, 100), (1e8, 1, 100), (1e8, 12, 120)]
)
def test_gentle_has_a_longer_warmup_in_short_runs(tokens: float, num_epochs: float, warmup: int) -> None:
    """100M tokens, as in a run of 10B tokens, but at most a tenth of the run."""
    config = ScheduleConfig(preset="gentle", base_peak_lr=3e-4)
    schedule, notes = resolve_schedule(
        config, total_steps=1000, tokens_per_step=int(tokens) // 1000, num_epochs=num_epochs
    )
    assert schedule.warmup_steps == warmup
    assert any("because the run is short" in note for note in notes) == (warmup > 10 * num_epochs)


@pytest.mark.parametrize("num_epochs", [51, 100, 5000])
def test_gentle_limits_its_warmup_to_half_of_the_run(num_epochs: float) -> None:
    *_, warmup, notes = resolve_preset(ScheduleConfig(preset="gentle", base_peak_lr=3e-4), num_epochs=num_epochs)
    assert warmup == 500
    assert notes[-1].startswith("warning: preset gentle") and f"{num_epochs} epochs" in notes[-1]


def test_gentle_keeps_a_longer_warmup_that_was_set() -> None:
    config = ScheduleConfig(preset="gentle", base_peak_lr=3e-4, warmup_share=0.2)
    *_, warmup, notes = resolve_preset(config, num_epochs=100)
    assert warmup == 200 and not any(note.startswith("warning") for note in notes)


def test_wsd_decays_over_the_last_tenth() -> None:
    schedule, _ = resolve_schedule(
        ScheduleConfig(preset="wsd", peak_lr=1e-4), total_steps=1000, tokens_per_step=1, num_epochs=1
    )
    assert [(segment.name, segment.num_steps) for segment in schedule.segments] == [
        ("warmup", 10),
        ("stable", 890),
        ("decay", 100),
    ]


def test_keys_override_the_preset() -> None:
    peak, final, warmup, _ = resolve_preset(
        ScheduleConfig(preset="gentle", peak_lr=2e-5, final_lr=1e-6, warmup_tokens=80_000_000)
    )
    assert (peak, final, warmup) == (2e-5, 1e-6, 20)


def test_four_times_the_batch_doubles_the_rate() -> None:
    peak, final, _, notes = resolve_preset(
        ScheduleConfig(peak_lr=3e-5, final_lr=3e-6, batch_scaling=BatchScalingConfig(base_tokens=1_000_000))
    )
    assert (peak, final) == (pytest.approx(6e-5), pytest.approx(6e-6))
    assert "= 2: peak 6e-05, final 6e-06" in notes[0]
