"""The `cpt:` section of a configuration, as frozen dataclasses. The text under a field is its documentation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from ascend_cpt.config.monitoring_schema import GuardConfig, MonitorConfig, ValidationConfig
from ascend_cpt.config.values import Interval

Tokens = Annotated[int, "tokens"]
"""A number of tokens: `300B`, `1.6M` or a plain number."""

Positive = Annotated[int, "positive"]
"""A whole number of at least 1."""

NotNegative = Annotated[int, "not negative"]
"""A whole number of at least 0."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """A packed dataset, as made by tools/preprocess_data.py."""

    path: str
    """Prefix of the dataset (`.../corpus_text_document`), its manifest, or a folder that holds one manifest."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate over the run: a linear warmup to the peak, then a decay to the final rate at the last step."""

    kind: str = "cosine"
    """`cosine`, `linear` or `constant`."""
    peak_lr: float
    """Learning rate after the warmup."""
    final_lr: float = 0.0
    """Learning rate at the last step (of `cosine` and `linear`)."""
    warmup_tokens: Tokens = 0
    """Tokens over which the rate rises from 0 to the peak."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are written and how many are kept. The last step always writes one."""

    every: Interval | None = None
    """How often, in tokens (`5B`) or steps (`1000 steps`); without it only at the end."""
    keep_last: NotNegative = 3
    """Number of newest complete checkpoints to keep; 0 keeps all."""


@dataclass(frozen=True, kw_only=True)
class CptConfig:
    """The recipe of a continued-pretraining run."""

    run_name: str | None = None
    """Name of the run folder under `output_dir`; the configuration file's name without it."""
    init_from: str | None = None
    """`random`, or a Hugging Face folder, or a run or checkpoint folder, whose weights this run starts from."""
    seq_length: Positive
    """Tokens in a training row; must be the sequence length that the datasets were packed with."""
    global_batch_size: Positive
    """Rows in one optimizer step over the whole cluster."""
    train_tokens: Tokens | None = None
    """Token budget; without it `runner_config.epochs` passes over the data."""
    schedule: ScheduleConfig | None = None
    """The learning rate; without it MindFormers' own `lr_schedule` section."""
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """Named datasets to train on."""
    validation: ValidationConfig | None = None
    """Named held-out datasets."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Checkpoint intervals."""
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    """Progress output."""
    guards: GuardConfig = field(default_factory=GuardConfig)
    """What must not reach the weights."""
