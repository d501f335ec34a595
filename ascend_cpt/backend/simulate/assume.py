"""A configuration settled on a machine that has neither its datasets nor its cluster."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ascend_cpt.backend.resolve import RunPlan, resolve
from ascend_cpt.config.layout import uses_cpu
from ascend_cpt.config.loader import RunConfig, load_config
from ascend_cpt.data.manifest import Manifest, Shard, TokenizerInfo
from ascend_cpt.errors import ConfigError
from ascend_cpt.model.parameters import list_mindformers_shapes
from ascend_cpt.model.sizes import read_sizes
from ascend_cpt.plan.case import DTYPE_BYTES, TrainingCase, split_layers

NUM_ASSUMED_TOKENS = 10**12


def choose_world_size(config: RunConfig, num_nodes: int | None, devices_per_node: int) -> int:
    """Return the devices of the cluster: the nodes of the command line, or what `parallel_config` multiplies to.

    Raises:
        ConfigError: when neither says it.
    """
    if num_nodes is not None:
        return num_nodes * devices_per_node
    section = config.mindformers.get("parallel_config") or {}
    data = section.get("data_parallel")
    if data is None:
        raise ConfigError(
            f"{config.locate('parallel_config')}: how large is the cluster? give --nodes, or set "
            "parallel_config.data_parallel"
        )
    product = int(data)
    for key in ("model_parallel", "pipeline_stage", "context_parallel"):
        product *= int(section.get(key) or 1)
    return product


def settle_without_data(config: RunConfig, world_size: int) -> RunPlan:
    """Settle every number of a run whose datasets are not here: they are assumed to fit.

    Raises:
        ConfigError: naming every number that does not fit.
    """
    if uses_cpu(config):
        raise ConfigError(
            f"{config.locate('context', 'device_target')}: context.device_target is CPU: plans are made for Ascend; "
            "add --set context.device_target=Ascend to see what this model would take there"
        )
    cpt = config.cpt
    assumed = _assume_manifest(config)
    sets = cpt.validation.sets if cpt.validation else {}
    return resolve(
        config,
        world_size=world_size,
        sources=dict.fromkeys(cpt.sources or ("assumed",), assumed),
        validation=dict.fromkeys(sets, assumed),
    )


def knows_budget(config: RunConfig) -> bool:
    """Return whether the token budget stands in the configuration; epochs need the datasets."""
    cpt = config.cpt
    return cpt.train_tokens is not None or (bool(cpt.phases) and all(phase.tokens for phase in cpt.phases))


def build_case(plan: RunPlan) -> TrainingCase:
    """Return what memory and time of a settled run depend on."""
    sections, model = plan.config.mindformers, plan.model
    sizes = read_sizes(model)
    parallel = sections.get("parallel") or {}
    optimizer = parallel.get("parallel_optimizer_config") or {}
    shard_size = int(optimizer.get("optimizer_weight_shard_size") or -1)
    layers = split_layers(sizes.num_layers, plan.layout.pipeline_parallel, model.get("offset"))
    recompute = sections.get("recompute_config") or {}
    return TrainingCase(
        model=sizes,
        parameters=list_mindformers_shapes(sizes),
        layout=plan.layout,
        layers_per_stage=layers,
        seq_length=plan.budget.seq_length,
        micro_batch_size=plan.budget.micro_batch_size,
        num_micro_batches=plan.budget.num_accumulation_steps,
        sequence_parallel=bool((sections.get("parallel_config") or {}).get("use_seq_parallel")),
        recomputed_layers=_read_recomputed_layers(recompute.get("recompute"), layers),
        recomputes_selected=bool(recompute.get("select_recompute")),
        shards_optimizer=bool(parallel.get("enable_parallel_optimizer", False)),
        # MindSpore takes only sizes above 1 for such.
        optimizer_shard_size=shard_size if shard_size > 1 else None,
        shards_gradients=bool(optimizer.get("gradient_accumulation_shard", False)),
        shard_threshold_bytes=int(optimizer.get("parallel_optimizer_threshold", 64)) * 1024,
        compresses_mask=bool(model.get("use_attn_mask_compression")) or plan.row_format.borders == "ends",
        param_bytes=DTYPE_BYTES[str(model.get("params_dtype", "float32"))],
        compute_bytes=DTYPE_BYTES[str(model.get("compute_dtype", "bfloat16"))],
    )


def load_shortened(
    plan: RunPlan, overrides: Mapping[str, Any], *, layers_per_stage: int | None, micro_batches: int
) -> RunConfig:
    """Return the configuration of a settled run with fewer layers and micro batches, everything else the same.

    Args:
        plan: The whole run.
        overrides: What the command line changed when the run's configuration was loaded.
        layers_per_stage: Layers on every pipeline stage; None keeps all.
        micro_batches: Micro batches of a step at most.
    """
    config = plan.config
    changed = dict(overrides)
    num_micro = min(plan.budget.num_accumulation_steps, micro_batches)
    changed["cpt.global_batch_size"] = plan.budget.micro_batch_size * plan.layout.data_parallel * num_micro
    changed["runner_config.batch_size"] = plan.budget.micro_batch_size
    for section, key in (("runner_config", "gradient_accumulation_steps"), ("parallel_config", "micro_batch_num")):
        if (config.mindformers.get(section) or {}).get(key) is not None:
            changed[f"{section}.{key}"] = num_micro
    if layers_per_stage is not None:
        changed["model.model_config.num_hidden_layers"] = layers_per_stage * plan.layout.pipeline_parallel
        if plan.model.get("offset") is not None:
            changed["model.model_config.offset"] = 0
    return load_config(config.path, changed)


def _read_recomputed_layers(value: Any, layers: tuple[int, ...]) -> tuple[int, ...]:
    """Return the layers of each stage that `recompute_config.recompute` means: one switch, or a list by stage."""
    counts = value if isinstance(value, list) else [bool(value)] * len(layers)
    return tuple(
        (most if count else 0) if isinstance(count, bool) else min(count, most)
        for count, most in zip(counts, layers, strict=True)
    )


def _assume_manifest(config: RunConfig) -> Manifest:
    """Return the manifest of a dataset that fits the configuration and is large enough."""
    model = config.mindformers.get("model", {}).get("model_config") or {}
    vocab_size = int(model.get("vocab_size") or 2)
    pad_id = model.get("pad_token_id", vocab_size - 1)
    num_rows = NUM_ASSUMED_TOKENS // config.cpt.seq_length
    shard = Shard(
        file="assumed",
        size_bytes=0,
        sha256="",
        index_file="assumed",
        index_size_bytes=0,
        index_sha256="",
        num_rows=num_rows,
        num_tokens=NUM_ASSUMED_TOKENS,
        num_documents=num_rows,
        text_bytes=0,
    )
    tokenizer = TokenizerInfo(
        type="assumed", name="assumed", fingerprint="", vocab_size=vocab_size, eod_id=int(pad_id == 0), pad_id=pad_id
    )
    return Manifest(
        key="text",
        output_format="mindrecord",
        seq_length=config.cpt.seq_length,
        tokenizer=tokenizer,
        shards=(shard,),
        path=Path("assumed.manifest.json"),
    )
