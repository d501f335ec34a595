"""Phases, blends, replay and presets: resolved exactly, or refused with a one-line error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ascend_cpt.errors import ConfigError
from ascend_cpt.run.picture import draw_plan
from ascend_cpt.run.resolved_run import ResolvedRun
from ascend_cpt.run.summary import describe

ResolveRun = Callable[..., ResolvedRun]


TWO_PHASES = [
    {"name": "general", "blend": {"web": 0.7, "code": 0.3}},
    {"name": "qa", "blend": {"web": 0.6, "code": 0.3, "qa": 0.1}},
]


def test_reuse_switches_at_a_fifth_of_the_peak(resolve_run: ResolveRun) -> None:
    run = resolve_run(phases=TWO_PHASES)
    assert [(phase.name, phase.first_step, phase.stop_step) for phase in run.phases] == [
        ("general", 0, 711),
        ("qa", 711, 1000),
    ]
    assert run.schedule is not None
    assert (run.schedule.warmup_steps, run.schedule.peak_lr, run.schedule.final_lr) == (0, 1e-4, pytest.approx(1e-6))
    quotas = run.count_source_rows(0, 1000)
    assert quotas["qa"] == pytest.approx(0.1 * 289 * 8, abs=1) and sum(quotas.values()) == 8000
    assert len(run.list_rows(711)) == 8


def test_phase_lengths_in_tokens(resolve_run: ResolveRun) -> None:
    first = {**TWO_PHASES[0], "tokens": 100 * 2048}
    assert resolve_run(phases=[first, TWO_PHASES[1]]).phases[0].stop_step == 100
    first = {**TWO_PHASES[0], "until": {"tokens": "1M"}}
    run = resolve_run(phases=[first, TWO_PHASES[1]])
    assert run.phases[0].stop_step == 488
    assert any("end of phase general 1,000,000 → 488 steps = 999,424 tokens" in note for note in run.notes)


def test_budget_may_be_the_sum_of_the_phases(resolve_run: ResolveRun) -> None:
    phases = [{**phase, "tokens": 100 * 2048} for phase in TWO_PHASES]
    assert resolve_run(phases=phases, train_tokens=None).budget.total_steps == 200


def test_replay_takes_its_fraction_of_every_phase(resolve_run: ResolveRun) -> None:
    phases = [{"name": "code", "blend": {"code": 1}}]
    run = resolve_run(
        phases=phases, replay={"source": "web", "fraction": 0.25}, num_rows={"web": 10_000, "code": 10_000}
    )
    assert run.count_source_rows(0, 1000) == {"web": 2000, "code": 6000}
    run = resolve_run(replay={"source": "web", "fraction": 0.05}, num_rows={"web": 10_000, "code": 10_000})
    assert run.count_source_rows(0, 1000) == {"web": 400, "code": 7600}


def test_summary(resolve_run: ResolveRun) -> None:
    text = describe(resolve_run(phases=TWO_PHASES, pad_length=128, train_tokens=2_050_000))
    for part in (
        "rate     from step 0 (0): cosine 0.0001 → 1e-06 over 1000 steps",
        "phase    general: from step 0 (0) to 711, 1.46M tokens, rate 0.0001 at its start: web 0.7 = 1.02M",
        "phase    qa: from step 711 (1.46M) to 1000",
        "source   qa: 59.1K tokens = 0.46 epochs of 500 rows",
        "note     preset reuse (arXiv 2407.07263): peak 0.0001, final 1e-06",
        "note     rounded: train_tokens 2,050,000 → 1,000 steps = 2,048,000 tokens",
        "note     unused: pad_length 128",
        "disk     a checkpoint is 17.3 MB (1.44M parameters, with the optimizer); 1 saved",
    ):
        assert part in text, text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"phases": [TWO_PHASES[0], {"name": "qa"}]}, r"phases\[1\] \(qa\): has no blend; give the weight of each"),
        ({"phases": [{**TWO_PHASES[0], "blend": {"wep": 1}}]}, "blend.wep: no such source; did you mean 'web'"),
        ({"phases": [TWO_PHASES[0]]}, "cpt.sources.qa: no phase uses it"),
        ({"phases": [TWO_PHASES[0], {**TWO_PHASES[1], "name": "general"}]}, "two are named 'general'"),
        ({"phases": [{**TWO_PHASES[0], "tokens": "3M"}, TWO_PHASES[1]]}, "would end at step 1464"),
        ({"phases": [{**TWO_PHASES[0], "tokens": 100}, TWO_PHASES[1]]}, "100 tokens are less than 1 step"),
        ({"phases": [TWO_PHASES[0], {**TWO_PHASES[1], "tokens": "1K"}]}, "1000 tokens are less than 1 step"),
        ({"phases": [TWO_PHASES[0], {**TWO_PHASES[1], "tokens": "20K"}]}, "ends at step 720, but the run has 1000"),
        (
            {"phases": [{**TWO_PHASES[0], "tokens": "1M", "until": {"lr_fraction": 0.2}}, TWO_PHASES[1]]},
            "set exactly one end",
        ),
        ({"phases": [{**TWO_PHASES[0], "until": {}}, TWO_PHASES[1]]}, "set exactly one end"),
        ({"phases": [{**TWO_PHASES[0], "until": {"lr_fraction": 0.001}}, TWO_PHASES[1]]}, "does not decay to 0.001"),
        ({"phases": [*TWO_PHASES, {**TWO_PHASES[1], "name": "more"}]}, r"\(general\): has no end; add tokens"),
        ({"phases": [{**TWO_PHASES[0], "blend": {"web": 0}}, TWO_PHASES[1]]}, "web: a weight must be above 0"),
        (
            {"phases": TWO_PHASES, "replay": {"source": "web", "fraction": 0.1}},
            "web has a weight in cpt.phases as well",
        ),
        ({"replay": {"source": "wep", "fraction": 0.1}}, "no source 'wep'; did you mean 'web'"),
        ({"replay": {"source": "web", "fraction": 5}}, "fraction: must lie between 0 and 1"),
        ({"phases": {"name": "x"}}, "cpt.phases: expected a list"),
        ({"phases": [{"name": "x", "blent": {}}]}, "cpt.phases.0.blent: unknown key; did you mean 'blend'"),
        ({"schedule": {"preset": "reuse"}}, "peak_lr: missing; preset reuse derives it from base_final_lr"),
        ({"schedule": {"preset": "reuze", "peak_lr": 1}}, "cpt.schedule.preset: 'reuze' is unknown"),
        ({"schedule": {"preset": "reuse", "kind": "wsd", "peak_lr": 1}}, "preset reuse is a cosine schedule, not wsd"),
        ({"schedule": {"kind": "wsd", "peak_lr": 1}}, "cpt.schedule.decay_share: missing"),
        ({"schedule": {"decay_share": 0.1, "peak_lr": 1}}, "only valid for kind wsd or infinite, not cosine"),
        ({"schedule": {"peak_lr": 1, "base_peak_lr": 1}}, "base_peak_lr: has no effect here"),
        ({"schedule": {"peak_lr": 1, "warmup_tokens": 10}}, "warmup_tokens: 10 tokens are less than 1 step"),
        ({"schedule": {"peak_lr": 1, "warmup_share": 2}}, "warmup_share: must lie between 0 and 1"),
        ({"schedule": {"peak_lr": 1, "warmup_share": 0.1, "warmup_tokens": "1M"}}, "are both set; keep one"),
        ({"schedule": {}}, "peak_lr: missing"),
        (
            {"schedule": {"peak_lr": 1, "batch_scaling": {"rule": "linear", "base_tokens": 1}}},
            "batch_scaling.rule: 'linear' is unknown",
        ),
        (
            {"sources": {"web": {"path": "x", "max_epochs": 0.5}, "code": {"path": "x"}, "qa": {"path": "x"}}},
            "cpt.sources.web: the run needs 1.4.M tokens of this source .0.55. epochs of 2.56M., but max_epochs is 0.5",
        ),
    ],
)
def test_refused(resolve_run: ResolveRun, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        resolve_run(**changes)
    assert "config.yaml:" in str(caught.value)


def test_many_epochs_and_missing_replay_are_warned_about(resolve_run: ResolveRun) -> None:
    run = resolve_run(num_rows={"qa": 500}, schedule={"preset": "rewarm", "base_peak_lr": 3e-4})
    assert any(note.startswith("warning: qa: 16 epochs") for note in run.notes)
    assert any(note.startswith("warning: re-warming without replay causes forgetting") for note in run.notes)


def test_fingerprint_contains_phases_and_blends(resolve_run: ResolveRun) -> None:
    run = resolve_run(phases=TWO_PHASES)
    other = resolve_run(phases=[TWO_PHASES[0], {**TWO_PHASES[1], "blend": {"web": 0.5, "code": 0.4, "qa": 0.1}}])
    assert run.fingerprint() == resolve_run(phases=TWO_PHASES).fingerprint() != other.fingerprint()


def test_order_of_keys_does_not_matter(resolve_run: ResolveRun) -> None:
    turned = [{**phase, "blend": dict(reversed(phase["blend"].items()))} for phase in TWO_PHASES]
    assert resolve_run(phases=turned).order.phases == resolve_run(phases=TWO_PHASES).order.phases
    assert resolve_run(phases=turned).list_rows(0) == resolve_run(phases=TWO_PHASES).list_rows(0)


def test_disk_follows_from_intervals(resolve_run: ResolveRun) -> None:
    checkpoint = {"every": "100 steps", "keep_last": 3}
    assert "10 saved, at most 4 on disk at once: 69.2 MB" in describe(
        resolve_run(phases=TWO_PHASES, checkpoint=checkpoint)
    )
    checkpoint = {"every": "300 steps", "keep_last": 0}
    assert "4 saved, at most 4 on disk at once" in describe(resolve_run(phases=TWO_PHASES, checkpoint=checkpoint))


def test_plan_plot_is_written_atomically(resolve_run: ResolveRun, tmp_path: Path) -> None:
    draw_plan(resolve_run(phases=TWO_PHASES), tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.glob("*.png")] == ["plan.png"]
