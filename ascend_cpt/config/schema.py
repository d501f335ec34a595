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
    max_epochs: float | None = None
    """At most so many passes over it in the whole run; without it as many as the blend asks for."""


@dataclass(frozen=True, kw_only=True)
class BatchScalingConfig:
    """The learning rate follows the batch: the peak is given for a batch of `base_tokens` tokens."""

    rule: str = "sqrt"
    """`sqrt`: the rates are multiplied by √(tokens of a step / base_tokens)."""
    base_tokens: Tokens
    """Tokens in a step of the batch that the given rates belong to."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate over the run."""

    preset: str | None = None
    """`reuse`, `rewarm`, `gentle` or `wsd`: fills in what is not given (docs/recipes.md)."""
    kind: str | None = None
    """`cosine` (the default), `linear`, `constant`, `wsd` or `infinite`."""
    peak_lr: float | None = None
    """Learning rate after the warmup; a preset may derive it from one of the next two."""
    base_final_lr: float | None = None
    """The rate with which the base model's pretraining ended, for preset `reuse`."""
    base_peak_lr: float | None = None
    """The highest rate of the base model's pretraining, for presets `rewarm` and `gentle`."""
    final_lr: float | None = None
    """Learning rate at the last step (0 without it)."""
    warmup_tokens: Tokens | None = None
    """Tokens over which the rate rises to the peak."""
    warmup_share: float | None = None
    """The same as a share of the run."""
    decay_tokens: Tokens | None = None
    """Length of the last decay of `wsd` and `infinite`, in tokens."""
    decay_share: float | None = None
    """The same as a share of the run."""
    decay_shape: str | None = None
    """Its shape: `linear` (the default), `cosine`, `sqrt` or `exponential`."""
    cooldown_tokens: Tokens | None = None
    """Tokens over which `infinite` falls from the peak to `constant_lr`."""
    constant_lr: float | None = None
    """The rate of `infinite` after that."""
    cycles: Positive = 1
    """The shape is run through so many times: re-warming and re-decaying."""
    batch_scaling: BatchScalingConfig | None = None
    """Scales the rates with the batch."""


@dataclass(frozen=True, kw_only=True)
class UntilConfig:
    """Where a phase ends; one of the two."""

    tokens: Tokens | None = None
    """At so many tokens from the start of the run."""
    lr_fraction: float | None = None
    """Where the learning rate has fallen to this fraction of its peak."""


@dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """A part of the run with a blend of its own. The last one goes on to the end of the run."""

    name: str
    """For the progress lines and the report."""
    tokens: Tokens | None = None
    """Length of the phase in tokens."""
    until: UntilConfig | None = None
    """Or where it ends."""
    blend: dict[str, float] = field(default_factory=dict)
    """Weight of each source that takes part; they need not add up to 1. May be left out with a single source."""


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """A source of the base model's kind of data that is mixed into every phase against forgetting."""

    source: str
    """Name of the source."""
    fraction: float
    """Its share of every phase, the others are scaled down: 0.05 for a weak shift, 0.25 for a strong one."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are written and how many are kept. The last step always writes one."""

    every: Interval | None = None
    """How often, in tokens (`5B`) or steps (`1000 steps`); without it only at the end."""
    keep_last: NotNegative = 3
    """Number of newest complete checkpoints to keep; 0 keeps all."""
    keep_every: Interval | None = None
    """Checkpoints at multiples of this are kept for good, beside the newest ones."""
    background: bool = False
    """Train on while the files are written, from a copy of model and optimizer in the memory of each process."""


@dataclass(frozen=True, kw_only=True)
class StorageConfig:
    """Where the nodes of a job keep data and output."""

    shared: bool = True
    """True: all nodes see the same folders. False (`--no-shared-storage`): each holds its own data and output."""
    verify_data: bool = True
    """Without shared storage: compare the content of every data file with its checksum, once per node and file."""


@dataclass(frozen=True, kw_only=True)
class CptConfig:
    """The recipe of a continued-pretraining run."""

    run_name: str | None = None
    """Name of the run folder under `output_dir`; the configuration file's name without it."""
    init_from: str | None = None
    """`random`, or a Hugging Face folder, or a run or checkpoint folder, whose weights this run starts from."""
    seq_length: Positive
    """Tokens in a training row; must be the sequence length that the datasets were packed with."""
    document_attention: str = "across"
    """`across`: a token sees all of its row before it; `within`: only its own document, whose positions start at 0."""
    global_batch_size: Positive
    """Rows in one optimizer step over the whole cluster."""
    train_tokens: Tokens | None = None
    """Token budget; without it the sum of the phases, or `runner_config.epochs` passes over the data."""
    schedule: ScheduleConfig | None = None
    """The learning rate; without it MindFormers' own `lr_schedule` section."""
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """Named datasets to train on."""
    phases: tuple[PhaseConfig, ...] = ()
    """Parts of the run with blends of their own; without them all rows of all sources are shuffled together."""
    replay: ReplayConfig | None = None
    """Data that is replayed in every phase."""
    validation: ValidationConfig | None = None
    """Named held-out datasets."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Checkpoint intervals."""
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    """Progress output."""
    guards: GuardConfig = field(default_factory=GuardConfig)
    """What must not reach the weights."""
    storage: StorageConfig = field(default_factory=StorageConfig)
    """Shared or node-local disks."""
    pad_length: int | None = None
    """Accepted and without effect: rows are packed; only the last row of each file is padded."""
