"""The `cpt:` section of a configuration as frozen dataclasses. Each field is documented by the string below it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from ascend_cpt.config.monitoring_schema import GuardConfig, MonitorConfig, ValidationConfig
from ascend_cpt.config.raw_schema import RawConfig
from ascend_cpt.config.values import Interval

Tokens = Annotated[int, "tokens"]
"""A number of tokens: `300B`, `1.6M` or a plain number."""

Positive = Annotated[int, "positive"]
"""A whole number of at least 1."""

NotNegative = Annotated[int, "not negative"]
"""A whole number of at least 0."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """A packed dataset, or text to pack. Set either `path` or `raw`."""

    path: str = ""
    """Prefix of the dataset (`.../corpus_text_document`), its manifest, one of its files, or its folder."""
    raw: RawConfig | None = None
    """Text that is packed once before training."""
    max_epochs: float | None = None
    """Maximum number of passes over it in the run; default: no limit."""
    max_tokens: Tokens | None = None
    """Train on a random subset of this size, in whole rows; default: all rows."""


@dataclass(frozen=True, kw_only=True)
class BatchScalingConfig:
    """Scales learning rates given for a batch of `base_tokens` tokens to the run's batch."""

    rule: str = "sqrt"
    """`sqrt`: multiply the rates by √(tokens per step / base_tokens)."""
    base_tokens: Tokens
    """Tokens per step for which the rates are given."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning-rate schedule."""

    preset: str | None = None
    """`reuse`, `rewarm`, `gentle` or `wsd`: sets the keys that are not given (docs/recipes.md)."""
    kind: str | None = None
    """`cosine` (the default), `linear`, `constant`, `wsd` or `infinite`."""
    peak_lr: float | None = None
    """Learning rate after the warmup; a preset may derive it from `base_final_lr` or `base_peak_lr`."""
    base_final_lr: float | None = None
    """Final learning rate of the base model's pretraining, for preset `reuse`."""
    base_peak_lr: float | None = None
    """Peak learning rate of the base model's pretraining, for presets `rewarm` and `gentle`."""
    final_lr: float | None = None
    """Learning rate at the last step; default 0."""
    warmup_tokens: Tokens | None = None
    """Length of the warmup in tokens."""
    warmup_share: float | None = None
    """Length of the warmup as a share of the run."""
    decay_tokens: Tokens | None = None
    """Length of the final decay of `wsd` and `infinite`, in tokens."""
    decay_share: float | None = None
    """Length of the final decay as a share of the run."""
    decay_shape: str | None = None
    """Shape of the final decay: `linear` (the default), `cosine`, `sqrt` or `exponential`."""
    cooldown_tokens: Tokens | None = None
    """Length of the cooldown of `infinite` from the peak to `constant_lr`, in tokens."""
    constant_lr: float | None = None
    """Learning rate of `infinite` after the cooldown."""
    cycles: Positive = 1
    """Number of repetitions of the whole shape (re-warming and re-decaying)."""
    batch_scaling: BatchScalingConfig | None = None
    """Scaling of the rates with the batch."""


@dataclass(frozen=True, kw_only=True)
class UntilConfig:
    """End of a phase. Set exactly one of the fields."""

    tokens: Tokens | None = None
    """Tokens from the start of the run."""
    lr_fraction: float | None = None
    """Fraction of the peak to which the learning rate has decayed."""


@dataclass(frozen=True, kw_only=True)
class EpochsConfig:
    """A source's share of a phase, given as the number of passes over the source."""

    epochs: float
    """Passes over the source in the phase; need not be whole."""


@dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """A part of the run with its own blend. The last phase lasts until the end of the run."""

    name: str
    """Name in the progress lines and the report."""
    tokens: Tokens | None = None
    """Length of the phase in tokens."""
    until: UntilConfig | None = None
    """End of the phase, instead of `tokens`."""
    blend: dict[str, float | EpochsConfig] = field(default_factory=dict)
    """Weight of each source in the phase; the sum need not be 1. Optional with a single source. `{epochs: 1.5}` instead
    of a weight: passes over this source; the weights divide the rest. With epochs for all sources the phase needs no
    length."""
    upweight: dict[str, float] = field(default_factory=dict)
    """Instead of `blend`: all sources by size, those named here multiplied by a factor."""


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """Data similar to the base model's pretraining data, mixed into every phase to reduce forgetting."""

    source: str
    """Name of the source."""
    fraction: float
    """Share in every phase; the other sources are scaled down. 0.05 for a weak shift, 0.25 for a strong one."""


@dataclass(frozen=True, kw_only=True)
class KeepBestConfig:
    """Keeps the checkpoints with the best recorded values. Set either `set` or `task`."""

    set: str | None = None
    """Name of a validation set; a lower loss is better."""
    task: str | None = None
    """Name of a task of `cpt.validation.tasks`."""
    n: Positive = 1
    """Number of checkpoints to keep."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Interval and retention of checkpoints. A checkpoint is always saved at the last step."""

    every: Interval | None = None
    """Interval in tokens (`5B`) or steps (`1000 steps`); default: only at the end."""
    keep_last: NotNegative = 3
    """Number of newest complete checkpoints to keep; 0 keeps all."""
    keep_every: Interval | None = None
    """Checkpoints at multiples of this interval are never deleted."""
    keep_best: KeepBestConfig | None = None
    """The best checkpoints are never deleted, and the best one can be opened as `RUN/best`."""
    save: bool = True
    """False saves nothing, not even at the last step: for measuring speed, as tools/tune.py does."""
    background: bool = False
    """Write checkpoints in the background, from a copy of model and optimizer state in host memory."""
    verify: bool = True
    """Compare the files of the checkpoint to start from with the checksums recorded when it was saved."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Exports and verifies the weights when the run is complete. Needs shared storage."""

    to: str
    """Hugging Face folder to write; it must be empty or missing."""
    when: str = "end"
    """Only `end`: after the last step."""
    checkpoint: str = "last"
    """`last`, or `best` with `cpt.checkpoint.keep_best`."""
    like: str | None = None
    """Folder to copy tokenizer files and config.json from; default: `init_from` if it is a Hugging Face folder."""


@dataclass(frozen=True, kw_only=True)
class StorageConfig:
    """Storage of data and output in a job with several nodes."""

    shared: bool = True
    """True: all nodes see the same folders. False (`--no-shared-storage`): each node has its own data and output."""
    verify_data: bool = True
    """Verify the checksum of every data file, once per machine; with shared storage, on one machine only."""


@dataclass(frozen=True, kw_only=True)
class BatchStageConfig:
    """A stage of a batch ramp. The last stage has no `until` and lasts until the end of the run."""

    until: Tokens | None = None
    """End of the stage, in tokens from the start of the run."""
    size: Positive
    """Rows per optimizer step over all devices."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters. Only they are trained; all weights of the model are frozen."""

    rank: Positive
    """Rank of every adapter."""
    alpha: float
    """The adapters' product is scaled by alpha / rank."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Linear modules with an adapter in every layer, by their names in transformers."""
    rank_stabilized: bool = False
    """Scale by alpha / √rank instead (rsLoRA)."""


@dataclass(frozen=True, kw_only=True)
class CptConfig:
    """Configuration of a continued-pretraining run."""

    run_name: str | None = None
    """Name of the run folder in `output_dir`; default: the name of the configuration file."""
    init_from: str | None = None
    """Initial weights: `random`, a Hugging Face folder, a run or checkpoint folder, or RUN/best."""
    seq_length: Positive
    """Tokens per training row; must be the sequence length with which the datasets were packed."""
    document_attention: str = "across"
    """`across`: a token attends to all earlier tokens of its row; `within`: only to those of its own document."""
    global_batch_size: Positive | tuple[BatchStageConfig, ...] | None = None
    """Rows per optimizer step over all devices, or a ramp (a list of stages). Default: `runner_config.batch_size` ×
    data parallel × accumulation steps."""
    loss_chunks: Positive = 1
    """Chunks in which the loss of a micro batch is computed, so that the logits of only one chunk exist at a time."""
    trainable: tuple[str, ...] = ()
    """Patterns of MindFormers' names of the weights to train; all others are frozen. `NAME[N:]` trains the rows of an
    embedding or output layer from N on. Default: all weights are trained."""
    lora: LoraConfig | None = None
    """Train low-rank adapters instead of the weights (docs/lora.md)."""
    train_tokens: Tokens | None = None
    """Token budget; default: the sum of the phases, or `runner_config.epochs` passes over the data."""
    schedule: ScheduleConfig | None = None
    """Learning-rate schedule; default: the `lr_schedule` section of MindFormers."""
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """Training datasets by name."""
    phases: tuple[PhaseConfig, ...] = ()
    """Parts of the run with their own blends; default: all rows of all sources are shuffled together."""
    restart_phases: bool = False
    """Every phase is a run of its own, from the initial weights and the first row of every source. All phases have the
    same length. For tools/search_mixture.py, which compiles once for many short runs; CPU only."""
    replay: ReplayConfig | None = None
    """Replay data."""
    validation: ValidationConfig | None = None
    """Held-out datasets."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Checkpoint interval and retention."""
    export: ExportConfig | None = None
    """Export to a Hugging Face folder at the end."""
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    """Console output and metric sinks."""
    guards: GuardConfig = field(default_factory=GuardConfig)
    """Guards against bad updates."""
    storage: StorageConfig = field(default_factory=StorageConfig)
    """Shared or node-local storage."""
    environment: dict[str, Any] = field(default_factory=dict)
    """Environment variables of the training processes, such as HCCL_BUFFSIZE (run/checks/environment.py)."""
    compile_cache: bool = False
    """Keep the compiled training step in the run folder, and load it when the unchanged run is started again."""
    pad_length: int | None = None
    """Accepted but has no effect: rows are packed to `seq_length`, and only the last row of each file is padded."""
