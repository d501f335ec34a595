"""Convert token budgets to optimizer steps, and global batches to micro batches."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Size of a run in steps and batches."""

    seq_length: int
    global_batch_size: int
    micro_batch_size: int
    num_accumulation_steps: int
    total_steps: int
    warmup_steps: int = 0

    @property
    def tokens_per_step(self) -> int:
        """Tokens per optimizer step: global batch size (rows) × sequence length (tokens)."""
        return self.global_batch_size * self.seq_length

    @property
    def total_tokens(self) -> int:
        """Tokens in the whole run."""
        return self.total_steps * self.tokens_per_step


def count_steps(tokens: int, tokens_per_step: int, *, minimum: int = 1) -> int:
    """Return the number of whole steps in `tokens`.

    Raises:
        ValueError: fewer than `minimum` steps; the message has the number of tokens needed.
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

    A value that is None is derived from the others; with both None there is no accumulation.

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
