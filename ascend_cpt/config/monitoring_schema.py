"""The monitoring keys of `cpt:`: validation sets with their alarm, guards, and where records go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ascend_cpt.config.values import Interval

AtLeastOne = Annotated[int, "positive"]

ON_INCREASE = ("warn", "stop")
OPTIONAL_SINKS = ("tensorboard", "wandb", "swanlab")


@dataclass(frozen=True, kw_only=True)
class ValidationSetConfig:
    """A held-out dataset, and the alarm for forgetting what the base model knew of it."""

    path: str
    """Prefix of the dataset, its manifest, or a folder that holds one manifest."""
    seq_length: AtLeastOne | None = None
    """Tokens in a row of an mmap dataset, up to the run's, as without it; a packed one has rows of its own."""
    max_increase: float | None = None
    """Alarm when the loss is more than so many nats above its base, the loss before the first step."""
    on_increase: str = "warn"
    """`warn`, or `stop`: save a checkpoint and end the run with exit code 1."""


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Held-out datasets whose loss is computed before the first step, every `every` and after the last step."""

    sets: dict[str, ValidationSetConfig]
    """Named packed datasets."""
    every: Interval | None = None
    """How often, in tokens (`1B`) or steps (`100 steps`); without it only before and after the run."""
    max_rows: AtLeastOne | None = None
    """At most this many rows of each set (the first ones), all of them without it."""


@dataclass(frozen=True, kw_only=True)
class MonitorConfig:
    """What the terminal shows and where the records go besides; metrics.jsonl always has every step."""

    print_every_steps: AtLeastOne = 1
    """A progress line every so many steps."""
    sinks: tuple[str, ...] = ("tensorboard",)
    """Any of `tensorboard`, `wandb`, `swanlab`; the last two must be installed."""
    project: str = "ascend_cpt"
    """The project's name on W&B and SwanLab; the run's name there is `run_name`."""


@dataclass(frozen=True, kw_only=True)
class SpikeConfig:
    """When a value is a spike: more than `sigmas` standard deviations above the mean of the last `window_steps` steps.

    The rule and its numbers are those of OLMo-core's SkipStepOptimizer. It judges nothing before half a window is full.
    """

    sigmas: float = 6.0
    """Standard deviations above the mean."""
    window_steps: AtLeastOne = 128
    """Steps that mean and deviation are taken over."""


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """What must not reach the weights."""

    stop_on_non_finite: bool = True
    """Stop at a NaN or infinite loss or gradient; the rows of that step are saved in the run folder."""
    loss_spike: SpikeConfig | None = None
    """Leave out the update of a step whose loss is a spike (`{}` for the usual numbers)."""
    grad_norm_spike: SpikeConfig | None = None
    """Leave out the update of a step whose gradient norm is a spike (`{}` for the usual numbers)."""
    max_skips_in_a_row: AtLeastOne = 10
    """Stop when so many steps, one after the other, were left out."""
