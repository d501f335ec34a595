"""Loads the weights of a Hugging Face folder into a network that MindFormers has built."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspore import Tensor, nn

from ascend_cpt.errors import CheckpointError
from ascend_cpt.weights.dtypes import to_float32
from ascend_cpt.weights.families import HF_EMBEDDING, HF_OUTPUT
from ascend_cpt.weights.hf_folder import HfFolder
from ascend_cpt.weights.mapping import check_tied, iterate_to_mindformers, list_hf_shapes, list_mindformers_shapes

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What was loaded. Nothing is ever missing: that is refused."""

    num_tensors: int
    num_parameters: int
    ignored: tuple[str, ...]

    def __str__(self) -> str:
        ignored = f", ignored {', '.join(self.ignored)}" if self.ignored else ""
        return f"loaded {self.num_tensors} tensors with {self.num_parameters:,} parameters, none missing{ignored}"


def load_hf(network: nn.Cell, path: Path) -> LoadReport:
    """Load all weights of the Hugging Face folder `path` into `network`, group by group, in the parameters' own types.

    The network holds whole parameters: one process, or data parallel. For sharded layouts MindFormers'
    `load_hf_checkpoint` reads each rank's slices, after `HfFolder.check` and `HfFolder.check_model`.

    Raises:
        CheckpointError: when the folder is damaged or holds another model; the network is untouched.
    """
    folder = HfFolder(path)
    folder.check()
    core: Any = network
    folder.check_model({**core.config.to_dict(), "model_type": core.config.model_type})
    parameters = {parameter.name: parameter for parameter in network.get_parameters()}
    _check_parameters(folder, parameters)
    if folder.sizes.tie_word_embeddings and HF_OUTPUT in folder.tensors:
        check_tied(folder.read(HF_EMBEDDING), folder.read(HF_OUTPUT))

    def read(name: str) -> Any:
        return to_float32(folder.read(name), folder.tensors[name].dtype)

    for name, weight in iterate_to_mindformers(folder.sizes, read):
        parameters[name].set_data(Tensor(weight, parameters[name].dtype))
    used = list_hf_shapes(folder.sizes)
    report = LoadReport(
        num_tensors=len(used),
        num_parameters=sum(folder.tensors[name].num_elements for name in used),
        ignored=tuple(sorted(set(folder.tensors) - set(used))),
    )
    logger.info("%s: %s", path, report)
    return report


def _check_parameters(folder: HfFolder, parameters: dict[str, Any]) -> None:
    """Check that the network has exactly the parameters that the folder's model has."""
    shapes = list_mindformers_shapes(folder.sizes)
    wrong = sorted(set(shapes) ^ set(parameters))
    if wrong:
        raise CheckpointError(f"{folder.path}: the network and the tables disagree about {', '.join(wrong)}")
    for name, shape in shapes.items():
        if tuple(parameters[name].shape) != shape:
            given = list(parameters[name].shape)
            raise CheckpointError(f"{folder.path}: the network's {name} has shape {given}, the model has {list(shape)}")
