"""Blends as the papers give them: subsets, epochs of a source, factors on natural shares, and a batch ramp."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ascend_cpt.errors import ConfigError
from ascend_cpt.recipe.phases import SampleOrder
from ascend_cpt.run.resolved_run import ResolvedRun
from tests.command_line import TrainCommand, train_command  # noqa: F401

ResolveRun = Callable[..., ResolvedRun]
# The fixture's sources have 10,000, 4,000 and 500 rows of 256 tokens; a run has 1000 steps of 8 rows.
WEB, CODE, QA = 10_000, 4_000, 500


def phases(*blends: dict[str, Any], **keys: Any) -> list[dict[str, Any]]:
    half = {"tokens": 500 * 8 * 256}
    return [
        {"name": f"p{index}", "blend": blend, **(half if index < len(blends) - 1 else {}), **keys}
        for index, blend in enumerate(blends)
    ]


def count_epochs(run: ResolvedRun, name: str) -> list[float]:
    rows = run.order.num_rows[name]
    return [run.count_source_rows(phase.first_step, phase.stop_step)[name] / rows for phase in run.phases]


def test_epochs_of_a_source_in_each_phase(resolve_run: ResolveRun) -> None:
    # NVIDIA's question answering: 1.5 epochs, then 3.5.
    run = resolve_run(
        phases=phases({"web": 3, "code": 1, "qa": {"epochs": 1.5}}, {"web": 1, "code": 1, "qa": {"epochs": 3.5}})
    )
    assert count_epochs(run, "qa") == pytest.approx([1.5, 3.5], abs=2 / QA)
    first, second = (run.count_source_rows(phase.first_step, phase.stop_step) for phase in run.phases)
    assert first["web"] == pytest.approx(3 * first["code"], abs=3)
    assert second["web"] == pytest.approx(second["code"], abs=2)


def test_epochs_beside_replay(resolve_run: ResolveRun) -> None:
    run = resolve_run(phases=phases({"web": 1, "qa": {"epochs": 2}}), replay={"source": "code", "fraction": 0.1})
    drawn = run.count_source_rows(0, 1000)
    assert drawn["qa"] == pytest.approx(2 * QA, abs=1) and drawn["code"] == pytest.approx(800, abs=1)
    assert drawn["web"] == pytest.approx(8000 - 2 * QA - 800, abs=2)


def test_epochs_of_all_sources_give_the_length(resolve_run: ResolveRun) -> None:
    blends = [{"web": {"epochs": 0.5}, "qa": {"epochs": 4}}, {"code": {"epochs": 1}, "qa": {"epochs": 2}}]
    run = resolve_run(
        train_tokens=None, phases=[{"name": f"p{index}", "blend": blend} for index, blend in enumerate(blends)]
    )
    assert [phase.num_steps for phase in run.phases] == [(5000 + 2000) // 8, (4000 + 1000) // 8]
    assert count_epochs(run, "qa") == pytest.approx([4, 2], abs=0.01)
    assert count_epochs(run, "web") == pytest.approx([0.5, 0], abs=0.001)


def test_upweight_multiplies_natural_shares(resolve_run: ResolveRun) -> None:
    run = resolve_run(phases=[{"name": "all", "upweight": {"code": 2}}])
    drawn = run.count_source_rows(0, 1000)
    total = WEB + 2 * CODE + QA
    assert [drawn[name] / 8000 for name in ("web", "code", "qa")] == pytest.approx(
        [WEB / total, 2 * CODE / total, QA / total], abs=1e-3
    )


def test_a_subset_is_drawn_at_random_and_repeated(resolve_run: ResolveRun) -> None:
    run = resolve_run(num_rows={"web": WEB}, sources={"web": {"path": "web", "max_tokens": 2000 * 256}})
    order = SampleOrder.from_record(run.order.to_record())
    rows = order.locate(np.arange(8000))[1].reshape(4, 2000)
    chosen = np.unique(rows[0])
    assert len(chosen) == 2000 and all(np.array_equal(np.unique(epoch), chosen) for epoch in rows)
    # Spread over the whole dataset, not its first rows.
    assert np.histogram(chosen, bins=10, range=(0, WEB))[0].min() > 150
    assert run.fingerprint()["subsets"] == [["web", 2000]]
    whole = resolve_run(num_rows={"web": WEB})
    assert "subsets" not in whole.fingerprint() and "pool_rows" not in whole.order.to_record()


def test_a_subset_in_a_blend_and_a_limit_of_its_epochs(resolve_run: ResolveRun) -> None:
    sources = {
        "web": {"path": "web", "max_tokens": 1000 * 256, "max_epochs": 3},
        "code": {"path": "code", "max_tokens": "10B"},
        "qa": {"path": "qa"},
    }
    with pytest.raises(ConfigError, match=r"\(4 epochs of 256K\), but max_epochs is 3"):
        resolve_run(sources=sources, phases=phases({"web": 4, "code": 3, "qa": 1}))
    run = resolve_run(sources=sources, phases=phases({"web": 3, "code": 4, "qa": 1}))
    sources_of, rows = run.order.locate(np.arange(8000))
    assert len(np.unique(rows[sources_of == 0])) == 1000
    assert run.order.pool_rows == {"web": WEB}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"phases": phases({"web": 1, "code": 1, "qa": {"epochs": 0}})}, "blend.qa.epochs: must be above 0"),
        (
            {"phases": phases({"web": {"epochs": 0.8}, "code": 1, "qa": 1})},
            "the epochs of web are 2.05M tokens, but the phase has 2.05M; lower them",
        ),
        (
            {"phases": phases({name: {"epochs": 0.5} for name in ("web", "code", "qa")}, tokens=2_048_000)},
            "all sources are given by epochs, which are 1.86M tokens, but the phase has 2.05M",
        ),
        ({"phases": phases({"web": 1}, upweight={"code": 2})}, "has both blend and upweight; keep one"),
        ({"phases": phases({}, upweight={"cod": 2})}, "upweight.cod: no such source; did you mean 'code'?"),
        ({"phases": phases({}, upweight={"code": 0})}, "code: a weight must be above 0"),
        ({"sources": {n: {"path": n, "max_tokens": 9} for n in ("web", "code", "qa")}}, "less than a row of 256"),
    ],
)
def test_refused(resolve_run: ResolveRun, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_run(**changes)
    assert message in str(caught.value)


def test_by_the_command_line(train_command: TrainCommand) -> None:  # noqa: F811
    path = train_command.write(
        {
            "init_from": "random",
            "seq_length": 256,
            "global_batch_size": 8,
            "train_tokens": 1000 * 8 * 256,
            "schedule": {"peak_lr": 1e-4},
            "sources": {"web": {"path": "/no/web", "max_tokens": "512K"}, "qa": {"path": "/no/qa"}},
            "phases": [{"name": "all", "blend": {"web": 1, "qa": {"epochs": 1.5}}}],
        }
    )
    code, out, err = train_command.dry_run(path, "--assume", "qa=128K")
    assert code == 0, err
    assert "source   qa: 192K tokens = 1.50 epochs of 500 rows" in out
    assert "source   web: 1.86M tokens = 3.62 epochs of 2000 rows" in out
    code, _, err = train_command.dry_run(path)
    assert code == 2 and "the blend depends on the size of qa, which was not found; give --assume qa=TOKENS" in err
