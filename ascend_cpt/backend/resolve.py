"""From a checked configuration to a run that is settled in every number: layout, batch, steps, schedule, data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ascend_cpt.backend.borders import choose_borders, find_border_problems
from ascend_cpt.backend.monitoring_checks import find_monitoring_problems
from ascend_cpt.backend.refusals import find_refusals
from ascend_cpt.backend.row_format import RowFormat
from ascend_cpt.backend.settle import (
    check_epochs,
    check_intervals,
    note_advice,
    note_rounding,
    settle_budget,
    settle_phases,
    settle_rate,
)
from ascend_cpt.config.layout import Layout, derive_layout, uses_cpu
from ascend_cpt.config.loader import RunConfig, raise_problems
from ascend_cpt.data.manifest import Manifest
from ascend_cpt.data.mmap_rows import count_rows
from ascend_cpt.plan.layout import find_layout_problems, find_switch_problems
from ascend_cpt.recipe.budget import Budget
from ascend_cpt.recipe.phases import Phase, SampleOrder
from ascend_cpt.recipe.schedule import Schedule

RANDOM_INIT = "random"
VALIDATION = "validation.sets"
DROPOUT = "pretraining uses none, it would make a resumed run differ and disturb the validation loss"


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A dataset of the run: its name in the configuration, its manifest, and its rows as this run reads them."""

    name: str
    manifest: Manifest
    seq_length: int
    """Trained tokens in a row; an mmap dataset is cut into rows of the run's length."""

    @property
    def num_rows(self) -> int:
        """How many rows it has."""
        return count_rows(self.manifest, self.seq_length)


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """A run that is settled in every number. `schedule` is None where MindFormers' own `lr_schedule` is used.

    `notes` are lines for people: what was filled in, rounded or looks unwise.
    """

    config: RunConfig
    run_dir: Path
    layout: Layout
    budget: Budget
    schedule: Schedule | None
    sources: tuple[Dataset, ...]
    validation: tuple[Dataset, ...]
    seed: int
    order: SampleOrder
    notes: tuple[str, ...] = ()

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases of the run; a run without any has one that is named `train`."""
        return self.order.phases

    def count_source_rows(self, first_step: int, stop_step: int) -> dict[str, int]:
        """Return how many rows of each source the steps `first_step` to `stop_step` (without it) train on."""
        batch = self.budget.global_batch_size
        return self.order.count(first_step * batch, stop_step * batch)

    def list_rows(self, step: int) -> list[tuple[str, int]]:
        """Return the (source, row in it) of every row of the global batch of `step` (0 is the first)."""
        batch = self.budget.global_batch_size
        sources, rows = self.order.locate(np.arange(step * batch, (step + 1) * batch))
        names = list(self.order.num_rows)
        return [(names[source], int(row)) for source, row in zip(sources, rows, strict=True)]

    @property
    def row_format(self) -> RowFormat:
        """How the network is given the rows."""
        tokenizer = self.sources[0].manifest.tokenizer
        return RowFormat(
            seq_length=self.budget.seq_length,
            pad_id=tokenizer.pad_id,
            eod_id=tokenizer.eod_id,
            borders=choose_borders(self.config),
            micro_batch_size=self.budget.micro_batch_size,
        )

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
            "document_attention": self.config.cpt.document_attention,
            "global_batch_size": self.budget.global_batch_size,
            "total_steps": self.budget.total_steps,
            "schedule": self.schedule.to_record() if self.schedule else None,
            "phases": self.order.to_record()["phases"],
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
    find_monitoring_problems(config, layout, problems)
    raise_problems(config.path, problems)
    source_sets = _list_datasets(config, sources, {})
    sets = config.cpt.validation.sets if config.cpt.validation else {}
    validation_sets = _list_datasets(config, validation or {}, {name: entry.seq_length for name, entry in sets.items()})
    _check_datasets(config, source_sets, "sources", problems)
    _check_datasets(config, validation_sets, VALIDATION, problems)
    _check_tokenizers(config, source_sets + validation_sets, problems)
    find_border_problems(config, layout, [*sources.items(), *(validation or {}).items()], problems)
    if validation_sets and layout.pipeline_parallel > 1:
        problems.append(
            f"{config.locate('cpt', 'validation')}: cpt.validation: needs pipeline_stage 1; remove one of them"
        )
    raise_problems(config.path, problems)
    seed = config.mindformers.get("seed", 42)
    num_rows = {source.name: source.num_rows for source in source_sets}
    budget = settle_budget(config, layout, sum(num_rows.values()), problems)
    raise_problems(config.path, problems)
    assert budget is not None
    check_intervals(config, budget, problems)
    schedule, notes = settle_rate(config, budget, sum(num_rows.values()), problems)
    raise_problems(config.path, problems)
    if schedule is not None:
        budget = dataclasses.replace(budget, warmup_steps=schedule.warmup_steps)
    phases = settle_phases(config, budget, schedule, num_rows, problems)
    raise_problems(config.path, problems)
    order = SampleOrder(num_rows=num_rows, phases=phases, global_batch_size=budget.global_batch_size, seed=seed)
    notes += note_rounding(config, budget, phases) + check_epochs(config, order, problems) + note_advice(config)
    raise_problems(config.path, problems)
    output_dir = Path(config.mindformers.get("output_dir") or "output")
    return RunPlan(
        config=config,
        run_dir=output_dir / (config.cpt.run_name or config.path.stem),
        layout=layout,
        budget=budget,
        schedule=schedule,
        sources=source_sets,
        validation=validation_sets,
        seed=seed,
        order=order,
        notes=tuple(notes),
    )


def _list_datasets(
    config: RunConfig, manifests: Mapping[str, Manifest], lengths: Mapping[str, int | None]
) -> tuple[Dataset, ...]:
    """Return the datasets with the length of their rows: given, or what they were packed with, or the run's."""
    return tuple(
        Dataset(
            name=name,
            manifest=manifest,
            seq_length=lengths.get(name) or manifest.seq_length or config.cpt.seq_length,
        )
        for name, manifest in manifests.items()
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
    found = find_layout_problems(model, layout, config.cpt.seq_length)
    if not found and not uses_cpu(config):
        parallel = config.mindformers.get("parallel_config") or {}
        recompute = config.mindformers.get("recompute_config") or {}
        found = find_switch_problems(
            model,
            layout,
            config.cpt.seq_length,
            sequence_parallel=bool(parallel.get("use_seq_parallel", False)),
            recompute=recompute.get("recompute"),
        )
    problems += [f"{config.locate('parallel_config')}: {problem}" for problem in found]


def select_model_identity(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a `model_config` that its weights depend on."""
    return {key: model.get(key) for key in MODEL_IDENTITY_KEYS}


def _check_datasets(config: RunConfig, datasets: tuple[Dataset, ...], kind: str, problems: list[str]) -> None:
    """Note datasets that were packed for another sequence length, vocabulary or tokenizer than this run's."""
    model = config.mindformers["model"]["model_config"]
    for dataset in datasets:
        tokenizer = dataset.manifest.tokenizer
        where = f"{config.locate('cpt', *kind.split('.'), dataset.name)}: cpt.{kind}.{dataset.name}"
        if not dataset.num_rows:
            problems.append(f"{where}: has no rows; pack it again from an input that has documents")
        problem = find_length_problem(dataset, config.cpt.seq_length, may_be_shorter=kind == VALIDATION)
        if problem:
            problems.append(f"{where}{problem}")
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


def find_length_problem(dataset: Dataset, seq_length: int, *, may_be_shorter: bool) -> str:
    """Return why the rows of a dataset do not fit a run's `seq_length`, as the end of a message; empty when they do.

    An mmap dataset has no rows of its own: it is cut into rows when it is read.
    """
    packed, asked = dataset.manifest.seq_length, dataset.seq_length
    if packed not in (None, asked):
        return f".seq_length: is {asked}, but the dataset has rows of {packed} tokens; remove the key"
    if asked == seq_length or (may_be_shorter and asked < seq_length):
        return ""
    if packed is None:
        return f".seq_length: is {asked}, more than cpt.seq_length {seq_length}; lower it"
    return (
        f": was packed with sequence length {packed}, but cpt.seq_length is {seq_length}; pack it again with "
        f"--seq-length {seq_length}"
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
    by_padding = {dataset.manifest.tokenizer.pad_id: dataset.name for dataset in datasets}
    if len(by_padding) > 1:
        told = ", ".join(f"{name} ({token})" for token, name in by_padding.items())
        problems.append(
            f"{config.locate('cpt', 'sources')}: the datasets pad with different tokens: {told}; pack them with one"
        )
