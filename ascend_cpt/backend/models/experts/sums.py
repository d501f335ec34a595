"""Reads and resets the sums that the routers of a mixture of experts keep on the device."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from mindformers.utils.parameter_register import parameter_register
from mindspore import Parameter, Tensor, nn
from numpy.typing import NDArray

from ascend_cpt.backend.collectives import sum_over_ranks
from ascend_cpt.model.families import is_router_state

_NAME = re.compile(r"decoder\.layers\.(\d+)\.mlp\.router\.(\w+)$")


class ExpertSums:
    """The sums of a network's routers.

    Args:
        network: A network with `ExpertRouter`, or a cell that contains it.
        num_layers: Layers of the whole model.
        num_ranks: Ranks of the run.
        num_stages: Pipeline stages. Each rank has the sums of its stage, which are the same on all ranks of the stage.
    """

    def __init__(self, network: nn.Cell, *, num_layers: int, num_ranks: int, num_stages: int = 1) -> None:
        self._num_layers, self._num_ranks, self._num_copies = num_layers, num_ranks, num_ranks // num_stages
        self._state = _find_state(network)

    def take(self) -> NDArray[np.float64]:
        """Return the sums over micro batches and reset them: (layers, experts + 2), each row with the layer's load,
        balance loss and z-loss. Every rank calls this and gets the same values.
        """
        rows: dict[int, dict[str, NDArray[np.float32]]] = {}
        for name, parameter in self._state.items():
            layer, kind = _split(name)
            rows.setdefault(layer, {})[kind] = parameter.asnumpy()
        size = len(next(iter(rows.values()))["load_sum"]) + 2
        values = np.zeros((self._num_layers, size))
        for layer, kinds in rows.items():
            values[layer] = np.concatenate([kinds["load_sum"], kinds["loss_sums"]])
        self.reset()
        total = sum_over_ranks(values.reshape(-1) / self._num_copies, self._num_ranks)
        return total.astype(np.float64).reshape(values.shape)

    def reset(self) -> None:
        """Set the sums to zero."""
        for parameter in self._state.values():
            parameter.set_data(Tensor(np.zeros(parameter.shape, np.float32)))


@contextmanager
def keep_router_state(network: nn.Cell) -> Iterator[None]:
    """Restore the routers' sums after this block, which computes tokens that are not trained on."""
    state = _find_state(network)
    before = {name: parameter.asnumpy().copy() for name, parameter in state.items()}
    try:
        yield
    finally:
        for name, values in before.items():
            state[name].set_data(Tensor(values))


def _find_state(network: nn.Cell) -> dict[str, Parameter]:
    return {one.name: one for one in network.get_parameters() if is_router_state(one.name)}


def _split(name: str) -> tuple[int, str]:
    match = _NAME.search(name)
    assert match is not None, name
    return int(match[1]), match[2]


class LanguageModelLoss:
    """The language model's part of the last step's loss, which MindFormers reads for its own log and then clears."""

    def __init__(self) -> None:
        self.value: Any = None
        """Sum over micro batches of the step, of this rank."""
        module: Any = importlib.import_module("mindformers.core.callback.callback")
        upstream = module._get_separate_loss

        def get_separate_loss() -> Any:
            # Read first: on a CPU, upstream's arrays share the memory that it then clears.
            self.value = float(np.mean(parameter_register.get("lm_loss").asnumpy()))
            return upstream()

        module._get_separate_loss = get_separate_loss
