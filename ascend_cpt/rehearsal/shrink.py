"""Scales a cluster configuration down to a small but complete one, and lists the changes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ascend_cpt.config.loader import RunConfig
from ascend_cpt.config.parallel_layout import ParallelLayout
from ascend_cpt.data.packed.network_inputs import WITHIN
from ascend_cpt.errors import ConfigError
from ascend_cpt.model.sizes import MOE_FAMILIES
from ascend_cpt.rehearsal.shrink_layout import shrink_layout
from ascend_cpt.rehearsal.shrink_model import LAYERS_PER_STAGE, choose_seq_length, shrink_model
from ascend_cpt.rehearsal.shrink_recipe import NUM_STEPS, shrink_lr_schedule, shrink_recipe
from ascend_cpt.run.resolved_run import RANDOM_INIT, ResolvedRun
from ascend_cpt.weights.hf_folder import is_hf_folder

HUGGING_FACE, RUN = "huggingface", "run"
DEVICE_MEMORY = "8GB"
MAX_MICRO_BATCH = 2
FLOAT_BYTES = 4
_HALF_PRECISION = ("bfloat16", "float16", "bf16", "fp16")

_MODEL_KEYS = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
               "head_dim", "vocab_size", "max_position_embeddings", "initializer_range", "offset",
               "pp_interleave_num", "rope_scaling", "rope_parameters")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """The run that replaces the user's job."""

    sections: dict[str, Any]
    """The complete small configuration, with the user's paths."""
    layout: ParallelLayout
    changes: tuple[str, ...]
    """The reduced values: `name: original -> used`."""
    starts_from: str
    """`random`, `huggingface` or `run`."""

    @property
    def model(self) -> Mapping[str, Any]:
        """The `model.model_config` section."""
        section: Mapping[str, Any] = self.sections["model"]["model_config"]
        return section

    @property
    def seq_length(self) -> int:
        """Tokens per row."""
        return int(self.sections["cpt"]["seq_length"])

    @property
    def global_batch_size(self) -> int:
        """Rows per optimizer step."""
        return int(self.sections["cpt"]["global_batch_size"])


def shrink(run: ResolvedRun, max_processes: int) -> Rehearsal:
    """Return the rehearsal for a run that was resolved without its datasets.

    Raises:
        ClusterError: when `max_processes` is too small.
        ConfigError: when the model is a mixture of experts.
    """
    config, before = run.config, run.layout
    if run.model["model_type"] in MOE_FAMILIES:
        raise ConfigError(
            f"{config.path}: {run.model['model_type']} cannot be rehearsed: its experts have not been run on the "
            "emulated devices; check the layout with tools/plan.py"
        )
    after = shrink_layout(before, max_processes)
    sections = copy.deepcopy(config.mindformers)
    model = sections["model"]["model_config"]
    within = config.cpt.document_attention == WITHIN
    seq_length = choose_seq_length(model, within_documents=within, seq_length=config.cpt.seq_length)
    accumulation = _choose_accumulation(run, after)
    micro = min(run.budget.micro_batch_size, MAX_MICRO_BATCH)
    batch = after.data_parallel * accumulation * micro
    sections["model"]["model_config"] = small = shrink_model(
        model, before, after, seq_lengths=(config.cpt.seq_length, seq_length)
    )
    sections["cpt"] = shrink_recipe(config.tree.data["cpt"], run, seq_length=seq_length, global_batch_size=batch)
    if sections.get("lr_schedule"):
        sections["lr_schedule"] = shrink_lr_schedule(sections["lr_schedule"])
    sections["runner_config"] = _shrink_runner(sections.get("runner_config") or {}, micro)
    sections["context"] = {**(sections.get("context") or {}), "max_device_memory": DEVICE_MEMORY}
    sections.setdefault("parallel", {})
    _set_layout(sections, after)
    if sections.get("recompute_config"):
        sections["recompute_config"] = _cut_by_stage(
            sections["recompute_config"], before.pipeline_parallel, after.pipeline_parallel
        )
    _shrink_optimizer_shards(sections["parallel"], model, small, before, after)
    for key in ("load_checkpoint", "resume_training"):
        sections.pop(key, None)
    starts_from = find_start(config)
    return Rehearsal(
        sections=sections,
        layout=after,
        changes=tuple(_list_changes(run, sections, after, accumulation, micro)),
        starts_from=starts_from,
    )


def shrink_to_one_device(rehearsal: Rehearsal) -> Rehearsal:
    """Return the same run on one device, with the global batch as a single micro batch."""
    one = ParallelLayout(world_size=1, data_parallel=1)
    sections = copy.deepcopy(rehearsal.sections)
    stages = rehearsal.layout.pipeline_parallel
    _set_layout(sections, one)
    sections["runner_config"]["batch_size"] = rehearsal.global_batch_size
    for key in ("offset", "pp_interleave_num"):
        sections["model"]["model_config"].pop(key, None)
    if sections.get("recompute_config"):
        sections["recompute_config"] = _cut_by_stage(sections["recompute_config"], stages, 1)
    shards = sections["parallel"]
    shards["enable_parallel_optimizer"] = False
    shards.pop("parallel_optimizer_config", None)
    return replace(rehearsal, sections=sections, layout=one)


def compute_in_float32(rehearsal: Rehearsal) -> Rehearsal:
    """Return the rehearsal in float32 instead of half precision, whose rounding would hide wrong results."""
    sections = copy.deepcopy(rehearsal.sections)
    model, changes = sections["model"]["model_config"], list(rehearsal.changes)
    for key, value in model.items():
        if key.endswith("dtype") and value in _HALF_PRECISION:
            model[key] = "float32"
            changes.append(f"{key}: {value} -> float32, for an exact comparison with one device")
    return replace(rehearsal, sections=sections, changes=tuple(changes))


def find_start(config: RunConfig) -> str:
    """Return the kind of initial weights; a path that does not exist is treated as a Hugging Face folder."""
    given = config.initial_weights
    if not given or given == RANDOM_INIT:
        return RANDOM_INIT
    path = Path(given)
    return RUN if path.is_dir() and not is_hf_folder(path) else HUGGING_FACE


def _choose_accumulation(run: ResolvedRun, layout: ParallelLayout) -> int:
    if layout.pipeline_parallel > 1:
        return layout.pipeline_parallel
    # One device cannot accumulate.
    return 2 if run.budget.num_accumulation_steps > 1 and layout.world_size > 1 else 1


def _shrink_runner(runner: Mapping[str, Any], micro: int) -> dict[str, Any]:
    dropped = ("epochs", "gradient_accumulation_steps")
    return {key: value for key, value in runner.items() if key not in dropped} | {"batch_size": micro}


def _set_layout(sections: dict[str, Any], layout: ParallelLayout) -> None:
    parallel = sections.get("parallel_config") or {}
    parallel.pop("micro_batch_num", None)
    sections["parallel_config"] = {
        **parallel,
        "data_parallel": layout.data_parallel,
        "model_parallel": layout.tensor_parallel,
        "pipeline_stage": layout.pipeline_parallel,
        "context_parallel": layout.context_parallel,
        "use_seq_parallel": bool(parallel.get("use_seq_parallel")) and layout.tensor_parallel > 1,
    }


def _cut_by_stage(value: Any, before: int, after: int) -> Any:
    """Cut a section's per-stage lists, whose entries count layers in a stage, to the remaining stages."""
    if isinstance(value, dict):
        return {key: _cut_by_stage(item, before, after) for key, item in value.items()}
    if not isinstance(value, list):
        return value
    cut = value[:after] if len(value) == before else value
    if after == 1 and len(value) == before and not isinstance(value[0], list):
        # With a single stage, a switch rather than a number selects all layers.
        return [_cap(cut[0])]
    return [_cut_by_stage(item, before, after) if isinstance(item, list) else _cap(item) for item in cut]


def _cap(item: Any) -> Any:
    if isinstance(item, int) and not isinstance(item, bool):
        return min(item, LAYERS_PER_STAGE - 1)
    return item


def _shrink_optimizer_shards(
    parallel: dict[str, Any],
    model: Mapping[str, Any],
    small: Mapping[str, Any],
    before: ParallelLayout,
    after: ParallelLayout,
) -> None:
    """Scale the threshold (in KB) so that the same weights are sharded: norms stay below it and matrices above."""
    options = parallel.get("parallel_optimizer_config")
    if not isinstance(options, dict):
        return
    threshold = options.get("parallel_optimizer_threshold")
    if isinstance(threshold, int) and threshold > 0:
        norm = int(model["hidden_size"]) * FLOAT_BYTES / 1024
        matrix = norm * int(model["hidden_size"]) / before.tensor_parallel
        if threshold <= norm:
            options["parallel_optimizer_threshold"] = 0
        elif threshold <= matrix:
            options["parallel_optimizer_threshold"] = 1 + int(small["hidden_size"]) * FLOAT_BYTES // 1024
    size = options.get("optimizer_weight_shard_size")
    if isinstance(size, int) and size > after.data_parallel:
        options["optimizer_weight_shard_size"] = after.data_parallel


def _list_changes(
    run: ResolvedRun, sections: Mapping[str, Any], after: ParallelLayout, accumulation: int, micro: int
) -> list[str]:
    before, old, new = run.layout, run.model, sections["model"]["model_config"]
    cpt = sections["cpt"]
    pairs: list[tuple[str, Any, Any]] = [
        ("devices", before.world_size, after.world_size),
        ("data parallel", before.data_parallel, after.data_parallel),
        ("pipeline stages", before.pipeline_parallel, after.pipeline_parallel),
        ("tensor parallel", before.tensor_parallel, after.tensor_parallel),
        ("context parallel", before.context_parallel, after.context_parallel),
        ("micro batches per step", run.budget.num_accumulation_steps, accumulation),
        ("rows per micro batch", run.budget.micro_batch_size, micro),
        ("rows per step", run.budget.global_batch_size, cpt["global_batch_size"]),
        ("tokens per row", run.budget.seq_length, cpt["seq_length"]),
        *((key, old.get(key), new.get(key)) for key in _MODEL_KEYS),
    ]
    given = run.config.mindformers
    for section, key in (
        ("parallel_config", "use_seq_parallel"),
        ("recompute_config", "recompute"),
        ("recompute_config", "select_recompute"),
        ("context", "max_device_memory"),
    ):
        pairs.append((key, (given.get(section) or {}).get(key), (sections.get(section) or {}).get(key)))
    for key in ("parallel_optimizer_threshold", "optimizer_weight_shard_size"):
        values = [
            ((tree.get("parallel") or {}).get("parallel_optimizer_config") or {}).get(key) for tree in (given, sections)
        ]
        pairs.append((key, values[0], values[1]))
    if run.schedule is not None:
        pairs.append(("peak learning rate", f"{run.schedule.peak_lr:g}", "0.001"))
    pairs.append(("steps", run.budget.total_steps, NUM_STEPS))
    return [f"{name}: {a} -> {b}" for name, a, b in pairs if a != b and not (not a and not b)]
