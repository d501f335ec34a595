"""cpt.restart_phases: every phase has the whole schedule and begins with the first rows of its sources."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ascend_cpt.errors import ConfigError
from ascend_cpt.recipe.phases import SampleOrder
from ascend_cpt.recipe.schedule import tabulate
from ascend_cpt.run.resolved_run import ResolvedRun

ResolveRun = Callable[..., ResolvedRun]
TOKENS = 100 * 8 * 256
BLENDS = ({"web": 3, "code": 1}, {"qa": 1}, {"web": 3, "code": 1})


def make(**changes: Any) -> dict[str, Any]:
    return {
        "train_tokens": None,
        "restart_phases": True,
        "checkpoint": {"save": False},
        "phases": [{"name": f"p{n}", "tokens": TOKENS, "blend": blend} for n, blend in enumerate(BLENDS)],
        "schedule": {"kind": "cosine", "peak_lr": 1e-3, "final_lr": 1e-4, "warmup_share": 0.1},
        **changes,
    }


def test_equal_phases_have_equal_rows_and_rates(resolve_run: ResolveRun) -> None:
    run = resolve_run(**make())
    assert [(one.first_step, one.stop_step) for one in run.phases] == [(0, 100), (100, 200), (200, 300)]
    positions = np.arange(800)
    first, third = (np.stack(run.order.locate(positions + offset)) for offset in (0, 1600))
    np.testing.assert_array_equal(first, third)
    assert SampleOrder.from_record(run.order.to_record()) == run.order
    assert run.schedule is not None
    rates = tabulate(run.schedule)
    np.testing.assert_array_equal(rates[:100], rates[200:])
    # The same as a run of one phase.
    alone = resolve_run(num_rows={"web": 10_000, "code": 4_000}, **make(phases=make()["phases"][:1]))
    assert alone.schedule is not None
    np.testing.assert_array_equal(rates[:100], tabulate(alone.schedule))
    assert alone.list_rows(99) == run.list_rows(99) == run.list_rows(299)


def test_epochs_are_those_of_one_phase(resolve_run: ResolveRun) -> None:
    """The second phase makes 1.6 epochs of qa, the others none."""
    limits = {"web": {"path": "web"}, "code": {"path": "code"}, "qa": {"path": "qa", "max_epochs": 1.7}}
    blends = [{"name": f"p{n}", "tokens": TOKENS, "blend": {"qa": 1, "web": 1e-4, "code": 1e-4}} for n in range(3)]
    resolve_run(**make(sources=limits, phases=blends))
    limits["qa"] = {"path": "qa", "max_epochs": 1.5}
    with pytest.raises(ConfigError, match="max_epochs is 1.5"):
        resolve_run(**make(sources=limits, phases=blends))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"phases": []}, "all phases need the same length"),
        ({"checkpoint": {}}, "needs cpt.checkpoint.save: False"),
        (
            {"phases": [{"name": n, "tokens": TOKENS * (1 + (n == "b")), "blend": BLENDS[0]} for n in "ab"]},
            "all phases need the same length",
        ),
    ],
)
def test_refused(resolve_run: ResolveRun, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_run(**make(**changes))
    assert message in str(caught.value)
