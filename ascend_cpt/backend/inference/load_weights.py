"""Loads weights from a Hugging Face folder or a checkpoint into a network built by MindFormers."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor, nn
from numpy.typing import NDArray

from ascend_cpt.errors import CheckpointError
from ascend_cpt.model.families import HF_EMBEDDING, HF_OUTPUT, is_router_state
from ascend_cpt.model.parameters import list_hf_shapes, list_mindformers_shapes
from ascend_cpt.model.tensor_layout import Shape
from ascend_cpt.weights.dtypes import to_float32
from ascend_cpt.weights.hf_folder import HfFolder
from ascend_cpt.weights.mapping import check_tied, iterate_to_mindformers
from ascend_cpt.weights.sources import TensorSource

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What was loaded. No tensor is missing; otherwise loading fails."""

    num_tensors: int
    num_parameters: int
    ignored: tuple[str, ...]

    def __str__(self) -> str:
        ignored = f", ignored {', '.join(self.ignored)}" if self.ignored else ""
        return f"loaded {self.num_tensors} tensors with {self.num_parameters:,} parameters, none missing{ignored}"


def load_hf(network: nn.Cell, path: Path) -> LoadReport:
    """Load weights from the Hugging Face folder `path` into `network` by group, casting them to the network's dtypes.

    The parameters must not be sharded (one process, or data parallelism). For sharded layouts, call `HfFolder.check`
    and `HfFolder.check_model`, then MindFormers' `load_hf_checkpoint`, which reads each rank's slices.

    Raises:
        CheckpointError: when the folder is damaged or contains another model. The network is then unchanged.
    """
    folder = HfFolder(path)
    folder.check()
    _check_network(network, folder)
    if folder.sizes.tie_word_embeddings and HF_OUTPUT in folder.tensors:
        check_tied(folder.read(HF_EMBEDDING), folder.read(HF_OUTPUT))

    def read(name: str) -> NDArray[np.float32]:
        return to_float32(folder.read(name), folder.tensors[name].dtype)

    _set_parameters(network, iterate_to_mindformers(folder.sizes, read))
    used = list_hf_shapes(folder.sizes)
    report = LoadReport(
        num_tensors=len(used),
        num_parameters=sum(folder.tensors[name].num_elements for name in used),
        ignored=tuple(sorted(set(folder.tensors) - set(used))),
    )
    logger.info("%s: %s", path, report)
    return report


def load_trained(network: nn.Cell, source: TensorSource) -> None:
    """Load all weights from a MindFormers checkpoint in any layout into a network with unsharded parameters.

    Raises:
        CheckpointError: when the tensors differ from the network's. The network is then unchanged.
    """
    _check_parameters(network, {name: info.shape for name, info in source.tensors.items()}, source.path)
    _set_parameters(
        network, ((name, to_float32(source.read(name), info.dtype)) for name, info in source.tensors.items())
    )


def _set_parameters(network: nn.Cell, tensors: Iterable[tuple[str, NDArray[np.float32]]]) -> None:
    parameters = network.parameters_dict()
    for name, tensor in tensors:
        parameters[name].set_data(Tensor(tensor, parameters[name].dtype))


def _check_network(network: Any, folder: HfFolder) -> None:
    """Check that the network matches the folder's model and that the folder has a tensor for every parameter."""
    folder.check_model({**network.config.to_dict(), "model_type": network.config.model_type})
    _check_parameters(network, list_mindformers_shapes(folder.sizes), folder.path)


def _check_parameters(network: nn.Cell, shapes: Mapping[str, Shape], path: Path) -> None:
    given = {
        name: tuple(parameter.shape)
        for name, parameter in network.parameters_dict().items()
        if not is_router_state(name)
    }
    wrong = sorted(name for name in {*shapes, *given} if shapes.get(name) != given.get(name))
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"{path}: {name} does not match the network: {shapes.get(name, 'none')} in the checkpoint, "
            f"{given.get(name, 'none')} in the network (tensors affected: {len(wrong)})"
        )
