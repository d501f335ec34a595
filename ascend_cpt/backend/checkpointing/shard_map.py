"""Makes metadata.json for a distributed checkpoint, which records the file that holds each shard.

MindFormers derives this map from the layout of every parameter on every rank, and lists each replica of a shard with
the ranks of all replicas. Here one rank represents each pipeline stage, since all ranks in a stage have the same
layouts. A shard has one entry, for the first rank that holds it, because MindFormers' loader reads it from there.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mindformers.checkpoint.sharded_tensor import _get_global_offset_and_replica_id_from_layout
from mindformers.checkpoint.utils import FileType, get_checkpoint_name
from mindspore.parallel.shard import _DistributedTensorInfo
from mindspore.parallel.strategy import _NetStrategyInfo

# Gradient-accumulation buffers are part of the layout but are in no file; MindFormers' loader skips them.
_NOT_SAVED = "accu_grads"


@dataclass(frozen=True, kw_only=True)
class _Placement:
    """The shard indices of parameters with the same layout, and the first rank that holds each shard."""

    indices: tuple[int, ...]
    ranks: tuple[int, ...]
    fragmentations: tuple[int, ...]
    chunk_heads: tuple[str, ...]
    layout_json: str


def make_shard_map(
    network: Any,
    *,
    prefix: str,
    model_names: Collection[str],
    num_ranks: int,
    saved_weights: Collection[str] | None = None,
) -> tuple[str, ...]:
    """Return the text of metadata.json in parts, without communication between ranks.

    Args:
        network: The compiled training network.
        prefix: Prefix of the checkpoint file names.
        model_names: Names of the parameters in model files. All others are in optimizer files.
        num_ranks: Number of ranks in the job.
        saved_weights: The parameters in the model files, if not all of `model_names` are saved.

    Raises:
        RuntimeError: when the network was not compiled for distributed training.
    """
    global_layout = _NetStrategyInfo._get_layout_handle().global_network_layout().get(network.compile_phase)
    if not global_layout or not any(global_layout.values()):
        raise RuntimeError(f"MindSpore has no tensor layouts for phase {network.compile_phase!r}")
    stages = describe_stages(network, global_layout)
    if saved_weights is not None:
        left_out = set(model_names) - set(saved_weights)
        stages = {
            rank: {name: info for name, info in infos.items() if name not in left_out} for rank, infos in stages.items()
        }
    return render_shard_map(stages, prefix=prefix, model_names=model_names, num_ranks=num_ranks)


def describe_stages(network: Any, global_layout: Mapping[int, Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
    """Return each parameter's (layout, dtype, global shape), keyed by name, for one rank per pipeline stage.

    Args:
        network: The network that the layout belongs to.
        global_layout: MindSpore's `StrategyInfo` of each rank's parameters.
    """
    stages: dict[int, Mapping[str, Any]] = {}
    names_by_rank: dict[int, Collection[str]] = {}
    for rank, infos in sorted(global_layout.items()):
        if infos and names_by_rank.get(rank) != infos.keys():
            stages[rank] = infos
            names_by_rank.update(dict.fromkeys(next(iter(infos.values())).rank_list, infos.keys()))
    # Most parameters share a layout within and across layers, so each layout is converted only once.
    kinds: dict[int, dict[Any, Any]] = {rank: {} for rank in stages}
    for rank, infos in stages.items():
        for info in infos.values():
            kinds[rank].setdefault(_get_kind(info), info)
    # When both layouts are given, MindSpore does not convert every rank's layout.
    layouts = _NetStrategyInfo(network, global_layout={network.compile_phase: kinds}, local_layout={}).get_rank_layout()
    return {
        rank: {
            name: (layouts[rank][_get_kind(info)][0], info.tensor_type, info.tensor_shape)
            for name, info in infos.items()
        }
        for rank, infos in stages.items()
    }


def _get_kind(info: Any) -> tuple[str, str, int]:
    """Return the values that determine a parameter's layout in a stage, whose parameters all have the same ranks."""
    return str(info.dev_matrix), str(info.tensor_map), info.opt_weight_shard_size


def render_shard_map(
    stages: Mapping[int, Mapping[str, Any]], *, prefix: str, model_names: Collection[str], num_ranks: int
) -> tuple[str, ...]:
    """Return the text of metadata.json in parts, as MindFormers' `load_metadata` reads it.

    A parameter shared by several stages, such as a tied embedding, is listed for the first of these stages.

    Args:
        stages: As `describe_stages` returns them.
        prefix, model_names, num_ranks: See `make_shard_map`.
    """
    names = set(model_names)
    placements: dict[Any, _Placement] = {}
    places: dict[Any, list[str]] = {}
    tensors: dict[str, str] = {}
    storage: list[str] = []
    for infos in stages.values():
        for name, (layout, dtype, shape) in infos.items():
            if _NOT_SAVED in name or name in tensors:
                continue
            described = layout.to_dict()
            key = (
                tuple(described["device_matrix"]),
                described["tensor_map"],
                described["rank_list"][0],
                described["alias_name"],
            )
            if key not in placements:
                placements[key] = _place(layout)
            placement = placements[key]
            tensors[name] = _render_tensor(placement, dtype, shape)
            kind = FileType.MODEL if name in names else FileType.OPTIMIZER
            if (key, kind) not in places:
                places[key, kind] = list(_render_places(placement, prefix, kind, num_ranks))
            head = json.dumps(f"({name!r}, ", ensure_ascii=False)[:-1]
            # The first part has no separator before it.
            storage.append(head + f",\n{head}".join(places[key, kind]))
    entries = [f"{json.dumps(name, ensure_ascii=False)}: {text}" for name, text in tensors.items()]
    return (
        '{"state_dict_metadata": {\n',
        ",\n".join(entries),
        '\n},\n"storage_data": {\n',
        ",\n".join(storage),
        "\n}}\n",
    )


def _place(layout: Any) -> _Placement:
    indices, replicas = _get_global_offset_and_replica_id_from_layout(layout)
    ranks = layout.to_dict()["rank_list"]
    firsts = [at for at, replica in enumerate(replicas) if replica == 0]
    return _Placement(
        indices=tuple(indices[at] for at in firsts),
        ranks=tuple(ranks[at] for at in firsts),
        fragmentations=tuple(int(count) for count in _DistributedTensorInfo(layout).sharding_strategy),
        chunk_heads=tuple(f'{{"global_offset": [{indices[at]}' for at in firsts),
        layout_json=json.dumps(layout.to_dict()),
    )


def _render_tensor(placement: _Placement, dtype: Any, shape: Any) -> str:
    local_shape = [int(size // count) for size, count in zip(shape, placement.fragmentations, strict=True)]
    tail = f'], "local_shape": {json.dumps(local_shape)}}}'
    chunks = f"{tail}, ".join(placement.chunk_heads) + tail
    properties = {"dtype": str(dtype), "replica_id": 0, "allow_shape_mismatch": False, "allow_to_save": True}
    return (
        f'{{"properties": {json.dumps(properties)}, "global_shape": {json.dumps(list(shape))}, '
        f'"axis_fragmentations": {json.dumps(placement.fragmentations)}, "layout": {placement.layout_json}, '
        f'"chunk": [{chunks}]}}'
    )


def _render_places(placement: _Placement, prefix: str, kind: FileType, num_ranks: int) -> Iterator[str]:
    """For each shard, yield the part of its id after the name, and its entry."""
    for index, rank in zip(placement.indices, placement.ranks, strict=True):
        file_name = f"{get_checkpoint_name(None, prefix, rank, num_ranks, kind)}.safetensors"
        place = [{"file_name": file_name, "storage_rank": rank, "rank_group": [rank]}]
        yield f'({index},))": {json.dumps(place)}'
