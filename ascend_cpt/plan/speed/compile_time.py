"""Estimates how long a rank compiles the training step, from compiles made with `tools/plan.py --compile`.

MindSpore compiles a stage's layers, and then repeats them for every micro batch. Sizes of tensors do not matter.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ascend_cpt.plan.case import TrainingCase

# Fitted to the compiles in docs/planning.md, "Compile time".
START_S = 25.0
LAYER_S = 20.0
LAYER_AND_MICRO_BATCH_S = 0.9
MAX_RECORDS = 50
"""Older records are ignored."""


@dataclass(frozen=True, kw_only=True)
class CompileRecord:
    """The CPU time that compiling one rank took."""

    num_layers: int
    """On the rank's stage."""
    num_micro_batches: int
    cpu_s: float


@dataclass(frozen=True, kw_only=True)
class CompileTime:
    """The estimated CPU time for compiling the training step on the rank with the most layers."""

    cpu_s: float
    num_records: int
    """Compiles on this machine that the estimate is scaled to; 0 if there are none."""

    def describe(self) -> str:
        """Return the estimate as text."""
        minutes = f"about {max(1, round(self.cpu_s / 60))} min of CPU time per rank"
        if self.num_records:
            return f"{minutes}, without CANN (scaled to {self.num_records} made with --compile on this machine)"
        return f"{minutes}, without CANN (from compiles on another machine; run --compile once to scale it to this one)"


def estimate_compile(case: TrainingCase, records: Sequence[CompileRecord]) -> CompileTime:
    """Return the estimate for a case, scaled to the records of this machine."""
    newest = records[-MAX_RECORDS:]
    scale = statistics.median(
        record.cpu_s / predict_cpu_s(record.num_layers, record.num_micro_batches) for record in newest
    ) if newest else 1.0  # fmt: skip
    cpu_s = predict_cpu_s(max(case.layers_per_stage), case.num_micro_batches)
    return CompileTime(cpu_s=scale * cpu_s, num_records=len(newest))


def predict_cpu_s(num_layers: int, num_micro_batches: int) -> float:
    """Return the CPU seconds on the machine whose compiles were fitted."""
    return START_S + LAYER_S * num_layers + LAYER_AND_MICRO_BATCH_S * num_layers * num_micro_batches
