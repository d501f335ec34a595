"""Converts token budgets to optimizer steps, and global batches to micro batches."""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class BatchStage:
    """A part of the run with one batch size. It lasts until the next stage begins or the run ends."""

    first_step: int
    global_batch_size: int
    micro_batch_size: int
    num_accumulation_steps: int


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Size of a run in steps and batches.

    With a batch ramp, `ramp` has all stages, and the batch belongs to the last stage unless `at` chose another one.
    Without a batch ramp, `ramp` is empty.
    """

    seq_length: int
    global_batch_size: int
    micro_batch_size: int
    num_accumulation_steps: int
    total_steps: int
    warmup_steps: int = 0
    ramp: tuple[BatchStage, ...] = ()

    @property
    def tokens_per_step(self) -> int:
        """Tokens per optimizer step: global batch size (rows) × sequence length (tokens)."""
        return self.global_batch_size * self.seq_length

    @property
    def total_tokens(self) -> int:
        """Tokens in the whole run."""
        return self.count_rows(self.total_steps) * self.seq_length

    def at(self, step: int) -> Budget:
        """Return the budget with the batch used at `step`, counted from 0."""
        if not self.ramp:
            return self
        stage = self.ramp[self._find_stage(step)]
        return dataclasses.replace(
            self,
            global_batch_size=stage.global_batch_size,
            micro_batch_size=stage.micro_batch_size,
            num_accumulation_steps=stage.num_accumulation_steps,
        )

    def find_stage_end(self, step: int) -> int:
        """Return the step at which the batch used at `step` ends: the next stage's first step, or the run's end."""
        later = [stage.first_step for stage in self.ramp if stage.first_step > step]
        return later[0] if later else self.total_steps

    def count_rows(self, step: int) -> int:
        """Return the number of rows in the first `step` steps, over all devices."""
        if not self.ramp:
            return step * self.global_batch_size
        return BatchSteps.of(self.ramp).first_position(step)

    def count_tokens(self, step: int) -> int:
        """Return the number of tokens in the first `step` steps."""
        return self.count_rows(step) * self.seq_length

    def count_steps_within(self, tokens: int, *, first_step: int = 0) -> int:
        """Return the stop step (exclusive) for training on `tokens` tokens from `first_step`, in whole steps.

        Raises:
            ValueError: the tokens give less than one step. The message states how many are needed.
        """
        if not self.ramp:
            return first_step + count_steps(tokens, self.tokens_per_step)
        first = self.at(first_step).tokens_per_step
        if tokens < first:
            count_steps(tokens, first)
        rows = self.count_rows(first_step) + tokens // self.seq_length
        return BatchSteps.of(self.ramp).count_steps(rows)

    def _find_stage(self, step: int) -> int:
        return bisect_right([stage.first_step for stage in self.ramp], step) - 1


@dataclass(frozen=True, kw_only=True)
class BatchSteps:
    """Converts steps to row positions. From `first_steps[i]` on, each step has `sizes[i]` rows."""

    first_steps: tuple[int, ...]
    sizes: tuple[int, ...]

    @staticmethod
    def of(stages: Sequence[BatchStage]) -> BatchSteps:
        """Return the steps for a ramp."""
        return BatchSteps(
            first_steps=tuple(stage.first_step for stage in stages),
            sizes=tuple(stage.global_batch_size for stage in stages),
        )

    def first_position(self, step: int) -> int:
        """Return the number of rows in the first `step` steps."""
        position = 0
        for first, stop, size in zip(self.first_steps, (*self.first_steps[1:], None), self.sizes, strict=True):
            if step > first:
                position += (min(step, stop) if stop is not None else step) * size - first * size
        return position

    def count_steps(self, rows: int) -> int:
        """Return the number of whole steps in the first `rows` rows."""
        steps = 0
        for first, stop, size in zip(self.first_steps, (*self.first_steps[1:], None), self.sizes, strict=True):
            inside = (rows - self.first_position(first)) // size
            if inside < 0:
                break
            steps = first + inside if stop is None else min(first + inside, stop)
        return steps


def count_steps(tokens: int, tokens_per_step: int, *, minimum: int = 1) -> int:
    """Return the number of whole steps in `tokens`.

    Raises:
        ValueError: the tokens give fewer than `minimum` steps. The message states how many are needed.
    """
    steps = tokens // tokens_per_step
    if steps < minimum:
        raise ValueError(
            f"{tokens} tokens are less than {minimum} step of {tokens_per_step} tokens; "
            f"give at least {minimum * tokens_per_step}"
        )
    return steps


def split_global_batch(
    global_batch_size: int, data_parallel: int, micro_batch_size: int | None, num_accumulation_steps: int | None
) -> tuple[int, int]:
    """Return (rows per micro batch, accumulation steps) so that their product × data_parallel is the global batch.

    A value of None is derived from the others. If both are None, there is no accumulation.

    Raises:
        ValueError: the numbers are not divisible.
    """
    if global_batch_size % data_parallel:
        raise ValueError(f"global_batch_size {global_batch_size} is not divisible by data_parallel {data_parallel}")
    per_rank = global_batch_size // data_parallel
    if micro_batch_size is None and num_accumulation_steps is None:
        return per_rank, 1
    if micro_batch_size is None:
        assert num_accumulation_steps is not None
        if per_rank % num_accumulation_steps:
            raise ValueError(
                f"global_batch_size {global_batch_size} / data_parallel {data_parallel} = {per_rank} rows are not "
                f"divisible by {num_accumulation_steps} accumulation steps"
            )
        return per_rank // num_accumulation_steps, num_accumulation_steps
    if per_rank % micro_batch_size:
        raise ValueError(
            f"global_batch_size {global_batch_size} / data_parallel {data_parallel} = {per_rank} rows are not "
            f"divisible by the micro batch of {micro_batch_size} (runner_config.batch_size)"
        )
    steps = per_rank // micro_batch_size
    if num_accumulation_steps is not None and num_accumulation_steps != steps:
        raise ValueError(
            f"global_batch_size {global_batch_size} is not batch_size {micro_batch_size} × data_parallel "
            f"{data_parallel} × {num_accumulation_steps} accumulation steps = "
            f"{micro_batch_size * data_parallel * num_accumulation_steps}"
        )
    return micro_batch_size, steps
