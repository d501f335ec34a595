"""Layouts trained on the software NPU, against the same run on the CPU target.

Each layout is trained undisturbed, and once more with everything at once: from a Hugging Face folder, on two nodes
with their own folders, saving in the background, killed and resumed, gathered and exported. The second run must have
the same losses and weights, bit by bit. All layouts: `pytest -n 0 -s -m "slow or not slow" FILE` prints a table.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.emulation import needs_emulation
from tests.integration.softnpu.layouts import LAYOUTS, Reference
from tests.integration.softnpu.trial import CpuRun, try_layout

pytestmark = needs_emulation
DEFAULT = ("data 2, accumulation 4",)


@pytest.mark.timeout(2400)
@pytest.mark.parametrize(
    "name", [name if name in DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in LAYOUTS]
)
def test_layout_trains_as_the_cpu_does(
    name: str,
    get_reference: Callable[[Reference], CpuRun],
    get_dataset: Callable[[int], Path],
    tmp_path: Path,
) -> None:
    layout, start_s = LAYOUTS[name], time.monotonic()
    cpu = get_reference(layout.reference)
    outcome = try_layout(layout, cpu, get_dataset(layout.reference.seq_length), tmp_path)
    figures = (
        outcome.loss_difference, outcome.validation_difference, outcome.share_after_step_1, outcome.share_at_the_end,
    )  # fmt: skip
    cells = ["-" if math.isnan(figure) else f"{figure:.1e}" for figure in figures]
    print("|", " | ".join([name, str(layout.workers), *cells, f"{time.monotonic() - start_s:.0f} s"]), "|")
    assert outcome.loss_difference <= layout.max_loss_difference
    assert not outcome.validation_difference > layout.max_loss_difference  # nan: no validation
    assert outcome.share_after_step_1 <= layout.max_share_of_other_updates
    assert outcome.share_at_the_end <= layout.max_share_of_other_updates
