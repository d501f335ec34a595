"""From a checked configuration to a run that is settled in every number: layout, batch, steps, schedule, data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ascend_cpt.backend.refusals import find_refusals
from ascend_cpt.config.layout import Layout, derive_layout, uses_cpu
from ascend_cpt.config.loader import RunConfig, raise_problems
from ascend_cpt.data.manifest import Manifest
from ascend_cpt.plan.layout import find_layout_problems
from ascend_cpt.recipe.budget import Budget, count_steps, split_global_batch
from ascend_cpt.recipe.schedule import Schedule

RANDOM_INIT = "random"
DROPOUT = "pretraining uses none, it would make a resumed run differ and disturb the validation loss"


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A packed dataset of the run: its name in the configuration and its manifest."""

    name: str
    manifest: Manifest


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """A run that is settled in every number. `schedule` is None where MindFormers' own `lr_schedule` is used."""

    config: RunConfig
    run_dir: Path
    layout: Layout
    budget: Budget
    schedule: Schedule | None
    sources: tuple[Dataset, ...]
    validation: tuple[Dataset, ...]
    seed: int

    @property
    def checkpoint_root(self) -> Path:
        """Folder that holds a folder for each saved step."""
        return self.run_dir / "checkpoint"

    @property
    def model(self) -> Mapping[str, Any]:
        """The `model.model_config` section."""
        section: Mapping[str, Any] = self.config.mindformers["model"]["model_config"]
        return section

    def fingerprint(self) -> dict[str, Any]:
        """Return what must not change between the start of a run and its continuation."""
        return {
            "model": dict(self.model),
            # A list: rows are numbered in the order of the sources.
            "sources": [[source.name, source.manifest.digest] for source in self.sources],
            "seq_length": self.budget.seq_length,
            "global_batch_size": self.budget.global_batch_size,
            "total_steps": self.budget.total_steps,
            "schedule": dataclasses.asdict(self.schedule) if self.schedule else None,
            "seed": self.seed,
            **{name: self.config.mindformers.get(name) for name in ("optimizer", "runner_wrapper", "lr_schedule")},
        }

    @property
    def report_rank(self) -> int:
        """The rank that reports: with pipeline stages the loss is known to the last stage only."""
        return self.layout.world_size - self.layout.world_size // self.layout.pipeline_parallel


MODEL_IDENTITY_KEYS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
    "hidden_act",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
)


def resolve(
    config: RunConfig,
    *,
    world_size: int,
    sources: Mapping[str, Manifest],
    validation: Mapping[str, Manifest] | None = None,
) -> RunPlan:
    """Settle every number of a run.

    Args:
        config: The checked configuration.
        world_size: Devices of the launch.
        sources: Manifest of each `cpt.sources` entry.
        validation: Manifest of each `cpt.validation.sets` entry.

    Raises:
        ConfigError: naming every number that does not fit.
    """
    problems: list[str] = []
    layout = derive_layout(config, world_size)
    check_model(config, layout, problems)
    find_refusals(config, layout, problems)
    raise_problems(config.path, problems)
    source_sets = tuple(Dataset(name=name, manifest=manifest) for name, manifest in sources.items())
    validation_sets = tuple(Dataset(name=name, manifest=manifest) for name, manifest in (validation or {}).items())
    _check_datasets(config, source_sets, "sources", problems)
    _check_datasets(config, validation_sets, "validation.sets", problems)
    _check_tokenizers(config, source_sets + validation_sets, problems)
    if validation_sets and layout.pipeline_parallel > 1:
        problems.append(
            f"{config.locate('cpt', 'validation')}: cpt.validation: needs pipeline_stage 1; remove one of them"
        )
    budget = _settle_budget(config, layout, source_sets, problems)
    raise_problems(config.path, problems)
    assert budget is not None
    schedule = _settle_schedule(config, budget, problems)
    raise_problems(config.path, problems)
    output_dir = Path(config.mindformers.get("output_dir") or "output")
    return RunPlan(
        config=config,
        run_dir=output_dir / (config.cpt.run_name or config.path.stem),
        layout=layout,
        budget=budget if schedule is None else dataclasses.replace(budget, warmup_steps=schedule.warmup_steps),
        schedule=schedule,
        sources=source_sets,
        validation=validation_sets,
        seed=config.mindformers.get("seed", 42),
    )


def check_model(config: RunConfig, layout: Layout, problems: list[str]) -> None:
    """Note what is missing from the model section or does not fit the layout."""
    model = (config.mindformers.get("model") or {}).get("model_config")
    if not isinstance(model, dict):
        problems.append(f"{config.path}: model.model_config is missing; give the model's sizes there")
        return
    where = config.locate("model", "model_config")
    for key in ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
        if model.get(key) is None:
            problems.append(f"{where}: model.model_config.{key} is missing; add it")
    for key in ("hidden_dropout", "attention_dropout"):
        if model.get(key):
            problems.append(
                f"{config.locate('model', 'model_config', key)}: model.model_config.{key} must be 0: {DROPOUT}"
            )
    for problem in find_layout_problems(model, layout, config.cpt.seq_length):
        problems.append(f"{config.locate('parallel_config')}: {problem}")


def select_model_identity(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a `model_config` that its weights depend on."""
    return {key: model.get(key) for key in MODEL_IDENTITY_KEYS}


def _check_datasets(config: RunConfig, datasets: tuple[Dataset, ...], kind: str, problems: list[str]) -> None:
    """Note datasets that were packed for another sequence length, vocabulary or tokenizer than this run's."""
    model = config.mindformers["model"]["model_config"]
    for dataset in datasets:
        manifest, tokenizer = dataset.manifest, dataset.manifest.tokenizer
        where = f"{config.locate('cpt', *kind.split('.'), dataset.name)}: cpt.{kind}.{dataset.name}"
        if manifest.seq_length != config.cpt.seq_length:
            problems.append(
                f"{where}: was packed with sequence length {manifest.seq_length}, but cpt.seq_length is "
                f"{config.cpt.seq_length}; pack it again with --seq-length {config.cpt.seq_length}"
            )
        if tokenizer.vocab_size > model["vocab_size"]:
            problems.append(
                f"{where}: was packed with a tokenizer of {tokenizer.vocab_size} entries, but the model has "
                f"vocab_size {model['vocab_size']}; use the model's own tokenizer"
            )
        if model.get("pad_token_id") not in (None, tokenizer.pad_id):
            problems.append(
                f"{config.locate('model', 'model_config', 'pad_token_id')}: model.model_config.pad_token_id "
                f"{model['pad_token_id']} is not what {dataset.name} is padded with ({tokenizer.pad_id}; its "
                f"end-of-document token is {tokenizer.eod_id}); remove the key, it follows from the dataset"
            )
        if tokenizer.pad_id == tokenizer.eod_id:
            problems.append(
                f"{where}: pads with the end-of-document token {tokenizer.eod_id}, whose loss would be lost; "
                "pack it again with another --pad-token-id"
            )


def _check_tokenizers(config: RunConfig, datasets: tuple[Dataset, ...], problems: list[str]) -> None:
    fingerprints: dict[str, str] = {}
    for dataset in datasets:
        fingerprints.setdefault(dataset.manifest.tokenizer.fingerprint, dataset.name)
    if len(fingerprints) > 1:
        names = ", ".join(fingerprints.values())
        problems.append(
            f"{config.locate('cpt', 'sources')}: the datasets {names} were packed with different tokenizers; "
            "pack them again with one"
        )


def _settle_budget(
    config: RunConfig, layout: Layout, sources: tuple[Dataset, ...], problems: list[str]
) -> Budget | None:
    sections, cpt = config.mindformers, config.cpt
    runner = sections.get("runner_config") or {}
    where = config.locate("cpt", "global_batch_size")
    accumulation = runner.get("gradient_accumulation_steps")
    if layout.pipeline_parallel > 1:
        accumulation = (sections.get("parallel_config") or {}).get("micro_batch_num", accumulation)
    try:
        micro, steps = split_global_batch(
            cpt.global_batch_size, layout.data_parallel, runner.get("batch_size"), accumulation
        )
    except ValueError as error:
        problems.append(f"{where}: cpt.{error}")
        return None
    if steps > 1 and uses_cpu(config):
        problems.append(
            f"{where}: a CPU run cannot accumulate gradients ({steps} steps asked for): "
            "MindFormers would drop them; remove runner_config.batch_size and gradient_accumulation_steps"
        )
    if layout.pipeline_parallel > 1 and steps < layout.pipeline_parallel:
        problems.append(
            f"{where}: pipeline_stage {layout.pipeline_parallel} needs at least as many micro batches, got {steps}; "
            "raise cpt.global_batch_size or lower runner_config.batch_size"
        )
    tokens_per_step = cpt.global_batch_size * cpt.seq_length
    if cpt.train_tokens is not None:
        tokens = cpt.train_tokens
        where = config.locate("cpt", "train_tokens")
        if runner.get("epochs") is not None:
            problems.append(f"{where}: cpt.train_tokens and runner_config.epochs are both set; keep one")
    else:
        num_rows = sum(source.manifest.num_rows for source in sources)
        tokens = num_rows * cpt.seq_length * (runner.get("epochs") or 1)
        where = config.locate("cpt", "sources")
    try:
        total_steps = count_steps(tokens, tokens_per_step)
    except ValueError as error:
        problems.append(f"{where}: {error}")
        return None
    return Budget(
        seq_length=cpt.seq_length,
        global_batch_size=cpt.global_batch_size,
        micro_batch_size=micro,
        num_accumulation_steps=steps,
        total_steps=total_steps,
    )


def _settle_schedule(config: RunConfig, budget: Budget, problems: list[str]) -> Schedule | None:
    schedule = config.cpt.schedule
    where = f"{config.locate('cpt', 'schedule')}: cpt.schedule"
    has_section = config.mindformers.get("lr_schedule") is not None
    if schedule is None:
        if not has_section:
            problems.append(f"{config.path}: no learning rate; add cpt.schedule with peak_lr")
        return None
    if has_section:
        problems.append(f"{where} and lr_schedule ({config.locate('lr_schedule')}) are both set; keep one")
        return None
    try:
        warmup_steps = count_steps(schedule.warmup_tokens, budget.tokens_per_step) if schedule.warmup_tokens else 0
        return Schedule(
            kind=schedule.kind,
            peak_lr=schedule.peak_lr,
            final_lr=schedule.final_lr,
            warmup_steps=warmup_steps,
            total_steps=budget.total_steps,
        )
    except ValueError as error:
        problems.append(f"{where}: {error}")
        return None
