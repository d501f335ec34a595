"""Adds frozen weights to MindSpore's tensor layouts, by which checkpoints are loaded and saved on several devices.

MindSpore lists only weights that are trained. MindFormers therefore neither loads nor saves the others, and logs only
the number of loaded parameters.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from mindspore.common.api import _cell_graph_executor
from mindspore.parallel.strategy import _NetStrategyInfo

from ascend_cpt.backend.models.built_networks import change_built_networks
from ascend_cpt.errors import CheckpointError


def add_frozen_layouts() -> None:
    """Add the frozen weights of networks built after this call. Call it after the function that freezes weights."""
    dtypes: dict[str, str] = {}

    def remember(network: Any) -> None:
        frozen = [parameter for parameter in network.get_parameters() if not parameter.requires_grad]
        dtypes.update({parameter.name: str(parameter.dtype).lower() for parameter in frozen})

    change_built_networks(remember)
    get_upstream = _NetStrategyInfo._get_layout_handle
    _NetStrategyInfo._get_layout_handle = staticmethod(lambda: _Layouts(get_upstream(), dtypes))


def require_frozen_weights(*, on_resume: bool) -> None:
    """Make MindFormers fail when it loads none of the frozen weights, which it would only log.

    Args:
        on_resume: Whether checkpoints contain the frozen weights. Those of adapters do not.
    """
    module: Any = importlib.import_module("mindformers.checkpoint.checkpoint")
    upstream = module.load_parameters

    def load_parameters(network: Any, state_dict: Any, optimizer: Any = None, *rest: Any, **settings: Any) -> None:
        frozen = [parameter.name for parameter in network.get_parameters() if not parameter.requires_grad]
        is_checked = optimizer is None or on_resume
        if is_checked and frozen and not any(name in state_dict for name in frozen):
            raise CheckpointError("none of the frozen weights was loaded, because MindSpore has no layouts for them")
        upstream(network, state_dict, optimizer, *rest, **settings)

    module.load_parameters = load_parameters


class _Layouts:
    """MindSpore's layouts of all compiled graphs, with the frozen weights of this rank's stage."""

    def __init__(self, upstream: Any, dtypes: Mapping[str, str]) -> None:
        self._upstream = upstream
        self._dtypes = dtypes

    def local_network_layout(self) -> dict[str, dict[int, dict[str, Any]]]:
        """Return phase → 0 → name → layout, for this rank."""
        return {
            phase: {rank: {**infos, **self._describe_frozen(phase, infos)} for rank, infos in ranks.items()}
            for phase, ranks in self._upstream.local_network_layout().items()
        }

    def global_network_layout(self) -> dict[str, dict[int, dict[str, Any]]]:
        """Return phase → rank → name → layout. Frozen weights of other stages are not included."""
        local = self._upstream.local_network_layout()
        found = {phase: dict(ranks) for phase, ranks in self._upstream.global_network_layout().items()}
        for phase, ranks in found.items():
            own: Mapping[str, Any] = next(iter(local.get(phase, {}).values()), {})
            frozen = self._describe_frozen(phase, own)
            for rank in next(iter(own.values())).rank_list if own else ():
                ranks[rank] = {**ranks.get(rank, {}), **frozen}
        return found

    def _describe_frozen(self, phase: str, trained: Mapping[str, Any]) -> dict[str, Any]:
        """Return name → layout of the frozen weights on this rank, in the form of MindSpore's `StrategyInfo`."""
        if not trained:
            return {}
        ranks = next(iter(trained.values())).rank_list
        found = {}
        for name, layout in _cell_graph_executor._graph_executor.get_parameter_layout(phase).items():
            if name not in self._dtypes:
                continue
            device_matrix, tensor_map, _, _, _, optimizer_group, shape = layout[:7]
            assert not optimizer_group, f"{name} is frozen, but the optimizer shards it"
            found[name] = SimpleNamespace(
                dev_matrix=list(device_matrix),
                tensor_map=[[axis] for axis in tensor_map],
                opt_weight_shard_size=0,
                rank_list=ranks,
                tensor_type=self._dtypes[name],
                tensor_shape=list(shape),
            )
        return found
