"""Trains only the last rows of the embedding or the output layer (`cpt.trainable: ['NAME[N:]']`).

The gradient of the other rows is set to zero where the network reads the weight, so the gradient norm and the clipping
exclude them. These weights have no weight decay. AdamW therefore never changes the other rows: their two averages stay
zero, and so does the update.

The operator is a Morph: MindSpore shards its inputs and outputs by layout and runs its functions on each device's slice
of the weight. The trained rows of the slice are given by the index of the tensor-parallel rank. All ranks select them
with a mask: if a rank without trained rows returned zeros instead, MindSpore would remove the communication of the
gradient from its graph only, and the ranks would wait for different collectives.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import mindspore as ms
import numpy as np
from mindformers.parallel_core.inference.parallel_state import get_tensor_model_parallel_group
from mindformers.parallel_core.training_graph.device_matrix import layout
from mindspore import Tensor, nn, ops
from mindspore.ops.operations import Morph

from ascend_cpt.backend.models.built_networks import change_built_networks, find_gpt_model
from ascend_cpt.backend.models.chunked_loss import ChunkedLoss

EMBEDDING, OUTPUT = "embedding.word_embeddings.weight", "output_layer.weight"


def infer_shape(weight: list[int]) -> list[int]:
    """Return the shape of the output, which is that of the weight."""
    return weight


def infer_dtype(weight: Any) -> Any:
    """Return the dtype of the output."""
    return weight


def mask_rows(first_row: int, num_rows: int, num_shards: int, shard_index: int) -> np.ndarray:
    """Return whether the rows of a slice are trained, of shape (rows of the slice, 1)."""
    size = num_rows // num_shards
    return np.arange(shard_index * size, (shard_index + 1) * size)[:, None] >= first_row


class TrainedRows(nn.Cell):
    """Returns the weight (rows, hidden size) unchanged. The gradient of its rows before `first_row` is zero."""

    def __init__(self, first_row: int, num_rows: int, num_shards: int) -> None:
        super().__init__(auto_prefix=False)
        is_sharded = ms.get_auto_parallel_context("parallel_mode") == ms.ParallelMode.SEMI_AUTO_PARALLEL
        shard_index = get_tensor_model_parallel_group().rank if is_sharded and num_shards > 1 else 0
        self.is_trained = Tensor(mask_rows(first_row, num_rows, num_shards, shard_index))
        self.operator = Morph(self.compute, infer_shape, infer_dtype, self.differentiate)
        self.operator.add_prim_attr("self_define_shard", True)
        if is_sharded:
            rows = layout("tp" if num_shards > 1 else "None", "None")
            self.operator.shard(in_strategy=(rows,), out_strategy=(rows,))

    def construct(self, weight: Tensor) -> Any:
        return self.operator(weight)

    def compute(self, weight: Tensor) -> Any:
        """Return the weight, this device's slice."""
        return weight

    def differentiate(self, _weight: Tensor, _out: Tensor, dout: Tensor) -> Any:
        """Return the gradient of this device's slice."""
        return (ops.select(self.is_trained, dout, ops.zeros_like(dout)),)


class WithTrainedRows(nn.Cell):
    """An operator whose second input is a weight of which only the last rows are trained."""

    def __init__(self, upstream: Callable[..., Any], rows: TrainedRows) -> None:
        super().__init__(auto_prefix=False)
        self.upstream, self.rows = upstream, rows

    def construct(self, inputs: Tensor, weight: Tensor, *others: Tensor) -> Any:
        return self.upstream(inputs, self.rows(weight), *others)


def train_rows(first_rows: Mapping[str, int]) -> None:
    """Train only the rows from `first_rows[NAME]` on of these weights, in networks built after this call.

    Call this after `chunk_losses`, because it changes the loss of the network.
    """

    def change(network: Any) -> None:
        model = find_gpt_model(network)
        tensor = model.config.tensor_model_parallel_size or 1
        if EMBEDDING in first_rows and model.pre_process:
            embedding = model.embedding.word_embeddings
            num_shards = tensor if embedding.enable_embedding_tp else 1
            rows = TrainedRows(first_rows[EMBEDDING], embedding.weight.shape[0], num_shards)
            embedding.embedding_morph = WithTrainedRows(embedding.embedding_morph, rows)
        output = EMBEDDING if model.share_embeddings_and_output_weights else OUTPUT
        if output in first_rows and model.post_process:
            rows = TrainedRows(first_rows[output], model.vocab_size, tensor)
            # ChunkedLoss computes the logits itself.
            if isinstance(model.loss, ChunkedLoss):
                losses = model.loss.token_losses
                losses.operator = WithTrainedRows(losses.operator, rows)
            else:
                layer = model.output_layer
                layer.morphed_forward = WithTrainedRows(layer.morphed_forward, rows)

    change_built_networks(change)
    _exclude_from_weight_decay(set(first_rows))


def _exclude_from_weight_decay(names: set[str]) -> None:
    """Make MindFormers create the optimizer without weight decay for these weights."""
    module: Any = importlib.import_module("mindformers.trainer.base_trainer")
    upstream = module.get_optimizer_grouped_parameters

    def get_groups(model: Any, **settings: Any) -> Any:
        model.no_weight_decay = lambda: names
        return upstream(model=model, **settings)

    module.get_optimizer_grouped_parameters = get_groups
