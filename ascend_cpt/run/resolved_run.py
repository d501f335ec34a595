"""The resolved run: everything training needs, derived from a configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ascend_cpt.config.loader import RunConfig
from ascend_cpt.config.parallel_layout import ParallelLayout, uses_cpu
from ascend_cpt.data.packed.manifest import Manifest
from ascend_cpt.data.packed.megatron_rows import count_rows
from ascend_cpt.data.packed.network_inputs import RowFormat
from ascend_cpt.model.frozen import list_frozen
from ascend_cpt.model.lora import LoraSettings, list_adapter_shapes
from ascend_cpt.model.parameters import list_mindformers_shapes
from ascend_cpt.model.sizes import read_sizes
from ascend_cpt.plan.case import split_layers
from ascend_cpt.plan.layout import count_stage_parts
from ascend_cpt.recipe.budget import Budget
from ascend_cpt.recipe.phases import Phase, SampleOrder
from ascend_cpt.recipe.schedule import Schedule
from ascend_cpt.run.document_attention import choose_boundaries
from ascend_cpt.weights.lora.base import BaseWeights

RANDOM_INIT = "random"


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A dataset in the run: its configured name, its manifest, and its row length in this run."""

    name: str
    manifest: Manifest
    seq_length: int
    """Trained tokens per row; an mmap dataset is cut into rows of this length."""
    max_rows: int | None = None
    """Rows of the subset that is trained on; None for all rows."""

    @property
    def num_rows(self) -> int:
        """Number of rows that are used."""
        return self.pool_rows if self.max_rows is None else min(self.pool_rows, self.max_rows)

    @property
    def pool_rows(self) -> int:
        """Number of rows in the dataset."""
        return count_rows(self.manifest, self.seq_length)


@dataclass(frozen=True, kw_only=True)
class ResolvedRun:
    """A run with all numbers resolved. `schedule` is None if MindFormers' `lr_schedule` is used.

    `notes` are lines to print: defaults filled in, rounding, warnings. `open_sources` are those whose size a dry run
    does not know.
    """

    config: RunConfig
    run_dir: Path
    layout: ParallelLayout
    budget: Budget
    schedule: Schedule | None
    sources: tuple[Dataset, ...]
    validation: tuple[Dataset, ...]
    seed: int
    order: SampleOrder
    notes: tuple[str, ...] = ()
    open_sources: frozenset[str] = frozenset()
    ramp_step: int | None = None
    """With a batch ramp, a step with the batch of `budget`; None without one."""
    base: BaseWeights | None = None
    """The weights under the adapters, once they are found; None without adapters."""

    def at_step(self, step: int) -> ResolvedRun:
        """Return the run with the batch used at `step`, counted from 0. Without a batch ramp, return the run itself."""
        if not self.budget.ramp:
            return self
        return dataclasses.replace(self, budget=self.budget.at(step), ramp_step=step)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases of the run, or a single one named `train` if none are configured."""
        return self.order.phases

    def count_source_rows(self, first_step: int, stop_step: int) -> dict[str, int]:
        """Return the number of rows from each source in steps `first_step` to `stop_step` (exclusive)."""
        return self.order.count(self.order.first_position(first_step), self.order.first_position(stop_step))

    def list_rows(self, step: int) -> list[tuple[str, int]]:
        """Return (source, row index in the source) for each row of the global batch at `step`, counted from 0."""
        positions = np.arange(self.order.first_position(step), self.order.first_position(step + 1))
        sources, rows = self.order.locate(positions)
        names = list(self.order.num_rows)
        return [(names[source], int(row)) for source, row in zip(sources, rows, strict=True)]

    @property
    def row_format(self) -> RowFormat:
        """The format of the network's inputs."""
        tokenizer = self.sources[0].manifest.tokenizer
        return RowFormat(
            seq_length=self.budget.seq_length,
            pad_id=tokenizer.pad_id,
            eod_id=tokenizer.eod_id,
            boundaries=choose_boundaries(self.config),
            micro_batch_size=self.budget.micro_batch_size,
        )

    @property
    def checkpoint_root(self) -> Path:
        """Folder with a subfolder for each saved step."""
        return self.run_dir / "checkpoint"

    @property
    def model(self) -> Mapping[str, Any]:
        """The `model.model_config` section."""
        section: Mapping[str, Any] = self.config.mindformers["model"]["model_config"]
        return section

    @property
    def lora(self) -> LoraSettings | None:
        """The adapters that are trained instead of the weights, if any."""
        return read_lora(self.config)

    @property
    def frozen(self) -> list[str]:
        """MindFormers' names of the weights that are not trained at all."""
        sizes = read_sizes(self.model)
        if self.lora is not None:
            return list(list_mindformers_shapes(sizes))
        return list_frozen(sizes, self.model.get("pet_config"), self.config.cpt.trainable)

    @property
    def saved_weights(self) -> list[str] | None:
        """The parameters that checkpoints contain: those of the adapters, or None for all weights."""
        return list(list_adapter_shapes(read_sizes(self.model), self.lora)) if self.lora else None

    def fingerprint(self) -> dict[str, Any]:
        """Return the values that must not change when a run is resumed."""
        subsets = [[name, self.order.num_rows[name]] for name in self.order.pool_rows]
        ramp = self.order.to_record().get("ramp")
        return {
            "model": without_stage_layers(self.model),
            # A list, because row indices depend on the order of the sources.
            "sources": [[source.name, source.manifest.digest] for source in self.sources],
            "seq_length": self.budget.seq_length,
            "document_attention": self.config.cpt.document_attention,
            "global_batch_size": ramp or self.order.global_batch_size,
            "total_steps": self.budget.total_steps,
            "schedule": self.schedule.to_record() if self.schedule else None,
            "phases": self.order.to_record()["phases"],
            "seed": self.seed,
            **({"subsets": subsets} if subsets else {}),
            **({"trainable": list(self.config.cpt.trainable)} if self.config.cpt.trainable else {}),
            **({"lora": {**dataclasses.asdict(self.lora), "targets": list(self.lora.targets)}} if self.lora else {}),
            **{name: self.config.mindformers.get(name) for name in ("optimizer", "runner_wrapper", "lr_schedule")},
        }

    def describe_layout(self) -> dict[str, Any]:
        """Return the values that decide which slices of the parameters and of the optimizer state each rank has.

        The sizes have the names that they have in `parallel_config`.
        """
        layout, stages = self.layout, self.layout.pipeline_parallel
        share, offset = self.model["num_hidden_layers"] // stages, self.model.get("offset")
        parts = count_stage_parts(self.model, layout)
        if parts == 1:
            per_stage = [share + more for more in (offset if isinstance(offset, list) else [0] * stages)]
        else:
            per_stage = list(split_layers(self.model["num_hidden_layers"], stages, offset, parts))
        return {
            "data_parallel": layout.data_parallel,
            "model_parallel": layout.tensor_parallel,
            "pipeline_stage": stages,
            "context_parallel": layout.context_parallel,
            "expert_parallel": layout.expert_parallel,
            "stage_layers": per_stage,
            **({"stage_parts": parts} if parts > 1 else {}),
            "optimizer_sharding": self._describe_optimizer_sharding(),
        }

    def _describe_optimizer_sharding(self) -> str:
        section = self.config.mindformers.get("parallel") or {}
        num_replicas = self.layout.data_parallel * self.layout.context_parallel
        if uses_cpu(self.config) or num_replicas == 1 or not section.get("enable_parallel_optimizer"):
            return "off"
        # The defaults are MindSpore's.
        options = section.get("parallel_optimizer_config") or {}
        num_ranks = options.get("optimizer_weight_shard_size", -1)
        threshold_kb = options.get("parallel_optimizer_threshold", 64)
        return f"{num_replicas if num_ranks == -1 else num_ranks} ranks from {threshold_kb} KB"

    @property
    def report_rank(self) -> int:
        """The rank that writes records. With pipeline stages, only the last stage has the loss."""
        return self.layout.world_size - self.layout.world_size // self.layout.pipeline_parallel


def read_lora(config: RunConfig) -> LoraSettings | None:
    """Return the settings of `cpt.lora`."""
    lora = config.cpt.lora
    if lora is None:
        return None
    return LoraSettings(rank=lora.rank, alpha=lora.alpha, targets=lora.targets, rank_stabilized=lora.rank_stabilized)


def without_stage_layers(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return model settings without the layers of pipeline stages, which are part of the layout, not of the model."""
    return {key: value for key, value in model.items() if key not in ("offset", "pp_interleave_num")}
