"""Distributes a layout's layers over its stages, and recomputes as few layers as memory allows."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from ascend_cpt.plan.case import TrainingCase
from ascend_cpt.plan.estimate import Limits, needed_bytes
from ascend_cpt.plan.machines import Machine
from ascend_cpt.plan.memory import estimate_stage_memory
from ascend_cpt.plan.speed.throughput import StageTime, StepTime, combine_stages, estimate_stage


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage with a number of layers."""

    recomputed: int
    """The fewest layers that let the stage fit."""
    time: StageTime


@dataclass(frozen=True, kw_only=True)
class StageSolver:
    """Finds the layers and recomputation per stage for one layout with its switches."""

    case: TrainingCase
    machine: Machine
    limits: Limits
    _found: dict[tuple[int, int], Stage | None] = field(default_factory=dict)

    def solve(self) -> tuple[TrainingCase, StepTime] | None:
        """Return the case with the fastest division into stages found, and its time, or None if none fits.

        Starting with the even division, one layer at a time is moved from a stage that does not fit, or else from the
        slowest stage, to the stage where it costs least, as long as this helps.
        """
        layers = self.case.layers_per_stage
        for _ in range(2 * len(layers)):
            moved = self._move_layer(layers)
            if moved is None:
                break
            layers = moved
        stages = self._fit_all(layers)
        if stages is None:
            return None
        case = dataclasses.replace(
            self.case, layers_per_stage=layers, recomputed_layers=tuple(stage.recomputed for stage in stages)
        )
        return case, self._combine(layers, stages)

    def split_loss(self, chunks: int) -> StageSolver:
        """Return the solver with a loss in `chunks` chunks, which changes only the last stage."""
        last = self.case.num_stages - 1
        return StageSolver(
            case=dataclasses.replace(self.case, loss_chunks=chunks),
            machine=self.machine,
            limits=self.limits,
            _found={key: stage for key, stage in self._found.items() if key[0] != last},
        )

    def _move_layer(self, layers: tuple[int, ...]) -> tuple[int, ...] | None:
        """Return a better division with one layer moved, or None."""
        found = [self.fit_stage(stage, number) for stage, number in enumerate(layers)]
        unfit = [stage for stage, solution in enumerate(found) if solution is None]
        if len(layers) == 1 or len(unfit) == len(layers):
            return None
        times = [solution.time.total_s if solution else float("inf") for solution in found]
        source = unfit[0] if unfit else max(range(len(layers)), key=times.__getitem__)
        best = None
        for target in range(len(layers)):
            if target == source or layers[source] == self.case.interleave:
                continue
            taken = self.fit_stage(target, layers[target] + 1)
            if taken is None:
                continue
            given = self.fit_stage(source, layers[source] - 1)
            after = taken.time.total_s if unfit or given is None else max(taken.time.total_s, given.time.total_s)
            if best is None or after < best[0]:
                best = (after, target)
        if best is None:
            return None
        moved = list(layers)
        moved[source] -= 1
        moved[best[1]] += 1
        if not unfit:
            before, changed = self._fit_all(layers), self._fit_all(tuple(moved))
            assert before is not None
            if changed is None or self._combine(tuple(moved), changed).step_s >= self._combine(layers, before).step_s:
                return None
        return tuple(moved)

    def fit_stage(self, stage: int, num_layers: int) -> Stage | None:
        """Return the stage with the fewest recomputed layers that fits, found by bisection, or None if none fits."""
        key = (stage, num_layers)
        if key not in self._found:
            self._found[key] = self._bisect(stage, num_layers)
        return self._found[key]

    def _bisect(self, stage: int, num_layers: int) -> Stage | None:
        low, high = 0, num_layers
        if self._fits(stage, num_layers, 0):
            high = 0
        elif not self._fits(stage, num_layers, high):
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._fits(stage, num_layers, middle) else (middle, high)
        case = self._replace(stage, num_layers, high)
        return Stage(recomputed=high, time=estimate_stage(case, stage, self.machine, self.machine.efficiency))

    def _fits(self, stage: int, num_layers: int, recomputed: int) -> bool:
        memory = estimate_stage_memory(self._replace(stage, num_layers, recomputed), stage)
        return needed_bytes(memory) <= self.limits.usable_bytes

    def _replace(self, stage: int, num_layers: int, recomputed: int) -> TrainingCase:
        layers, counts = list(self.case.layers_per_stage), list(self.case.recomputed_layers)
        layers[stage], counts[stage] = num_layers, recomputed
        return dataclasses.replace(self.case, layers_per_stage=tuple(layers), recomputed_layers=tuple(counts))

    def _fit_all(self, layers: tuple[int, ...]) -> list[Stage] | None:
        stages = [self.fit_stage(stage, number) for stage, number in enumerate(layers)]
        found = [stage for stage in stages if stage is not None]
        return found if len(found) == len(stages) else None

    def _combine(self, layers: tuple[int, ...], stages: list[Stage]) -> StepTime:
        case = dataclasses.replace(self.case, layers_per_stage=layers)
        return combine_stages(case, [stage.time for stage in stages], self.machine, self.machine.efficiency)
