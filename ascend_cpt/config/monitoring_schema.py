"""The monitoring part of the `cpt:` section: validation sets and tasks, their alarms, guards, metric sinks."""

from __future__ import annotations

from dataclasses import dataclass, field

from ascend_cpt.config.task_schema import AtLeastOne, TaskConfig
from ascend_cpt.config.values import Interval, Patience

OPTIONAL_SINKS = ("tensorboard", "wandb", "swanlab")


@dataclass(frozen=True, kw_only=True)
class ValidationSetConfig:
    """A held-out dataset, with an optional alarm for forgetting."""

    path: str
    """Prefix of the dataset, its manifest, or a folder that contains one manifest."""
    seq_length: AtLeastOne | None = None
    """Row length in tokens for an mmap dataset, at most that of the run (the default). Not for MindRecord datasets."""
    max_increase: float | None = None
    """Alarm when the loss is more than this many nats above the loss before the first step."""
    on_increase: str = "warn"
    """`warn`, or `stop`: save a checkpoint and exit with code 1."""
    patience: Patience | None = None
    """With `stop`: how long the loss may stay above it, `1B` (tokens), `100 steps` or `3 validations`;
    default: stop at the first validation above the limit."""


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Held-out datasets and tasks, evaluated before the first step, at each interval and after the last step."""

    sets: dict[str, ValidationSetConfig] = field(default_factory=dict)
    """Packed datasets by name."""
    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    """Evaluation tasks by name; `sets` and `tasks` must not both be empty."""
    tokenizer: str | None = None
    """Hugging Face folder or model file that encodes the tasks; default: that of `init_from`, if it has one."""
    tokenizer_type: str = "PretrainedFromHF"
    """`PretrainedFromHF`, `SentencePiece` or `TikToken`."""
    every: Interval | None = None
    """Interval in tokens (`1B`) or steps (`100 steps`); default: only before and after the run."""
    max_rows: AtLeastOne | None = None
    """Use only `max_rows` rows of each set, spread over the whole set; default: all."""


@dataclass(frozen=True, kw_only=True)
class MonitorConfig:
    """Console output and additional metric sinks. Every step is always written to metrics.jsonl."""

    print_every_steps: AtLeastOne = 1
    """Interval of the progress lines, in steps."""
    sinks: tuple[str, ...] = ("tensorboard",)
    """Any of `tensorboard`, `wandb` and `swanlab`; the last two must be installed separately."""
    project: str = "ascend_cpt"
    """Project name for W&B and SwanLab; the run is called `run_name`."""
    expert_every_steps: AtLeastOne = 10
    """Interval of the records of the experts' loads and the routers' losses, in steps (mixtures of experts)."""
    slow_rank_excess: float = 0.1
    """Warn about a rank that computes this much slower than the median rank, or makes the others wait for this share
    of the step time."""


@dataclass(frozen=True, kw_only=True)
class SpikeConfig:
    """A value is a spike if it is more than `sigmas` standard deviations above the mean of `window_steps` steps.

    The rule and defaults come from OLMo-core's SkipStepOptimizer. No value is checked until half a window is filled.
    """

    sigmas: float = 6.0
    """Standard deviations above the mean."""
    window_steps: AtLeastOne = 128
    """Number of steps for mean and standard deviation."""


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """Guards against bad updates."""

    stop_on_non_finite: bool = True
    """Stop at a NaN or infinite loss or gradient, and save the rows of that step in the run folder."""
    loss_spike: SpikeConfig | None = None
    """Skip the update of a step whose loss is a spike (`{}` for the defaults)."""
    grad_norm_spike: SpikeConfig | None = None
    """Skip the update of a step whose gradient norm is a spike (`{}` for the defaults)."""
    max_skips_in_a_row: AtLeastOne = 10
    """Stop after this many consecutive skipped steps."""
    max_expert_load: float | None = None
    """Stop when an expert processes more than this many times the mean number of tokens of its layer's experts in a
    record of the experts' loads."""
