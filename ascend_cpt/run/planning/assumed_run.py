"""Resolves a configuration without its datasets or cluster, using placeholder manifests."""

from __future__ import annotations

from pathlib import Path

from ascend_cpt.config.loader import RunConfig
from ascend_cpt.config.parallel_layout import uses_cpu
from ascend_cpt.config.schema import EpochsConfig
from ascend_cpt.data.packed.manifest import Manifest, Shard
from ascend_cpt.data.tokenizing.info import TokenizerInfo
from ascend_cpt.errors import ConfigError
from ascend_cpt.run.resolve import resolve
from ascend_cpt.run.resolved_run import ResolvedRun

NUM_ASSUMED_TOKENS = 10**12
SMALL_PART = 10_000


def choose_world_size(config: RunConfig, num_nodes: int | None, devices_per_node: int) -> int:
    """Return the number of devices: from `num_nodes`, or the product of the sizes in `parallel_config`.

    Raises:
        ConfigError: when neither is given.
    """
    if num_nodes is not None:
        return num_nodes * devices_per_node
    section = config.mindformers.get("parallel_config") or {}
    data = section.get("data_parallel")
    if data is None:
        raise ConfigError(
            f"{config.locate('parallel_config')}: the size of the cluster is unknown; give --nodes, or set "
            "parallel_config.data_parallel"
        )
    product = int(data)
    for key in ("model_parallel", "pipeline_stage", "context_parallel"):
        product *= int(section.get(key) or 1)
    return product


def resolve_without_data(config: RunConfig, world_size: int) -> ResolvedRun:
    """Resolve a run without its datasets, which are assumed to fit and to be large enough.

    Raises:
        ConfigError: naming every problem.
    """
    reject_cpu(config)
    return resolve_with_placeholders(config, world_size)


def reject_cpu(config: RunConfig) -> None:
    """Raise ConfigError if the configuration trains on a CPU."""
    if uses_cpu(config):
        raise ConfigError(
            f"{config.locate('context', 'device_target')}: context.device_target is CPU, but plans are for Ascend; "
            "add --set context.device_target=Ascend to plan this model there"
        )


def resolve_with_placeholders(config: RunConfig, world_size: int) -> ResolvedRun:
    """Resolve a run for any device target, with placeholder datasets that fit.

    Raises:
        ConfigError: naming every problem.
    """
    cpt = config.cpt
    placeholder = make_placeholder_manifest(config)
    # A source specified by its epochs must be smaller than its phase.
    small = make_placeholder_manifest(config, max(cpt.seq_length, (_find_budget(config) or 0) // SMALL_PART))
    by_epochs = {name for phase in cpt.phases for name, one in phase.blend.items() if isinstance(one, EpochsConfig)}
    sets = cpt.validation.sets if cpt.validation else {}
    return resolve(
        config,
        world_size=world_size,
        sources={name: small if name in by_epochs else placeholder for name in cpt.sources or ("assumed",)},
        validation=dict.fromkeys(sets, placeholder),
    )


def has_token_budget(config: RunConfig) -> bool:
    """Return whether the budget is given in tokens; a number of epochs needs the datasets."""
    return _find_budget(config) is not None


def _find_budget(config: RunConfig) -> int | None:
    cpt = config.cpt
    if cpt.train_tokens is None and cpt.phases and all(phase.tokens for phase in cpt.phases):
        return sum(phase.tokens or 0 for phase in cpt.phases)
    return cpt.train_tokens


def make_placeholder_manifest(config: RunConfig, num_tokens: int = NUM_ASSUMED_TOKENS) -> Manifest:
    """Return a manifest that fits the configuration, with `num_tokens` tokens rounded down to whole rows."""
    model = config.mindformers.get("model", {}).get("model_config") or {}
    vocab_size = int(model.get("vocab_size") or 2)
    pad_id = model.get("pad_token_id", vocab_size - 1)
    num_rows = num_tokens // config.cpt.seq_length
    shard = Shard(
        file="assumed",
        size_bytes=0,
        sha256="",
        index_file="assumed",
        index_size_bytes=0,
        index_sha256="",
        num_rows=num_rows,
        num_tokens=num_tokens,
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
