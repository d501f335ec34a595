"""The language-model loss in chunks of the rows (`cpt.loss_chunks`), with only one chunk's logits in memory at a time.

MindFormers computes the logits for a whole micro batch and keeps four float32 copies of them until the backward pass.
Here, the output layer and the cross entropy are one operator. Its forward pass keeps three numbers per token. Its
backward pass recomputes the logits chunk by chunk, and accumulates the output weight's gradient in float32.

The operator is a Morph: MindSpore shards its inputs and outputs by layout and runs its functions on each device's
slices. The loss, the gradients and their row order are the same as in MindFormers.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import mindspore as ms
import numpy as np
from mindformers.parallel_core.inference.parallel_state import get_tensor_model_parallel_group
from mindformers.parallel_core.training_graph.base_models.gpt.gpt_model import GPTModel
from mindformers.parallel_core.training_graph.device_matrix import layout
from mindformers.parallel_core.training_graph.loss_func import CrossEntropyLoss
from mindspore import Tensor, nn, ops
from mindspore.ops.auto_generate import (
    ArgMaxWithValue,
    Cast,
    Concat,
    Exp,
    Log,
    Mul,
    Neg,
    OneHotExt,
    Reshape,
    SubExt,
    SumExt,
    Transpose,
)
from mindspore.ops.operations import Morph

from ascend_cpt.backend.models.built_networks import change_built_networks, find_gpt_model

NOTHING: tuple[Any, ...] = ()


def infer_shapes(hidden: list[int], _weight: list[int], _labels: list[int]) -> tuple[list[int], ...]:
    """Return the shapes of the outputs: one number per token of hidden (seq_length, batch, hidden size)."""
    num_tokens = int(np.prod(hidden[:2]))
    return [num_tokens], [num_tokens], [num_tokens]


def infer_dtypes(*_dtypes: Any) -> tuple[Any, ...]:
    """Return the dtypes of the operator's outputs."""
    return ms.float32, ms.float32, ms.float32


class TokenLosses(nn.Cell):
    """The output layer and each token's cross entropy.

    Inputs: hidden (seq_length, batch, hidden size), weight (vocabulary, hidden size) and labels (batch * seq_length,)
    int32. Outputs: float32 of shape (batch * seq_length,): the loss of every token (nats), the maximum of its logits,
    and the logarithm of the sum of exp(logit - maximum).
    """

    def __init__(self, config: Any, num_chunks: int) -> None:
        super().__init__(auto_prefix=False)
        self.num_chunks = num_chunks
        self.compute_dtype = config.compute_dtype
        tensor = config.tensor_model_parallel_size or 1
        is_sharded = ms.get_auto_parallel_context("parallel_mode") == ms.ParallelMode.SEMI_AUTO_PARALLEL
        self.shards = tensor if is_sharded else 1
        self.shard_index = 0
        if self.shards > 1:
            group = get_tensor_model_parallel_group()
            self.shard_index = group.rank
            self.max_over_shards = ops.AllReduce(ops.ReduceOp.MAX, group.group)
            self.sum_over_shards = ops.AllReduce(ops.ReduceOp.SUM, group.group)
        self.reshape, self.transpose, self.cast = Reshape(), Transpose(), Cast()
        self.logits_of = ops.MatMul(transpose_b=True)
        self.input_gradient = ops.MatMul()
        self.weight_gradient = ops.MatMul(transpose_a=True)
        self.max = ArgMaxWithValue(axis=1, keep_dims=True)
        self.sub, self.exp, self.sum, self.log = SubExt(), Exp(), SumExt(), Log()
        self.mul, self.neg, self.one_hot = Mul(), Neg(), OneHotExt(axis=-1)
        self.on, self.off = Tensor(1.0, ms.int32), Tensor(0.0, ms.int32)
        self.join_rows, self.join_columns = Concat(0), Concat(1)
        self.operator = Morph(self.compute, infer_shapes, infer_dtypes, self.differentiate)
        self.operator.add_prim_attr("self_define_shard", True)
        if is_sharded:
            per_token = layout("dp_cp")
            self.operator.shard(
                in_strategy=(layout("cp", "dp", "None"), layout("tp", "None"), per_token),
                out_strategy=(per_token, per_token, per_token),
            )

    def construct(self, hidden: Tensor, weight: Tensor, labels: Tensor) -> Any:
        return self.operator(hidden, self.cast(weight, self.compute_dtype), labels)

    def compute(self, hidden: Tensor, weight: Tensor, labels: Tensor) -> Any:
        """Return the cell's outputs. All arguments are this device's slices."""
        length, batch, size = hidden.shape
        part = length // self.num_chunks
        labels = self.reshape(labels, (batch, length))
        losses, maxima, sums = NOTHING, NOTHING, NOTHING
        done = labels
        for index in range(self.num_chunks):
            start = index * part
            # The dependency keeps MindSpore from computing several chunks' logits at the same time.
            rows = self.reshape(ops.depend(hidden[start : start + part], done), (part * batch, size))
            logits = self.cast(self.logits_of(rows, weight), ms.float32)
            _, top = self.max(logits)
            if self.shards > 1:
                top = self.max_over_shards(top)
            centred = self.sub(logits, top)
            # One-hot labels have no other dependency, so MindSpore would compute and keep them for all chunks first.
            own_labels = ops.depend(labels[:, start : start + part], centred)
            target = self.one_hot_labels(own_labels, part * batch, weight.shape[0])
            total = self.sum(self.exp(centred), -1, True)
            chosen = self.sum(self.mul(centred, target), -1, True)
            if self.shards > 1:
                both = self.sum_over_shards(self.join_columns((total, chosen)))
                total, chosen = both[:, 0:1], both[:, 1:2]
            log_total = self.log(total)
            loss = self.neg(self.sub(chosen, log_total))
            losses += (self.by_row(loss, part, batch),)
            maxima += (self.by_row(top, part, batch),)
            sums += (self.by_row(log_total, part, batch),)
            done = loss
        shape = (batch * length,)
        return (
            self.reshape(self.join_columns(losses), shape),
            self.reshape(self.join_columns(maxima), shape),
            self.reshape(self.join_columns(sums), shape),
        )

    def differentiate(self, hidden: Tensor, weight: Tensor, labels: Tensor, out: Any, dout: Any) -> Any:
        """Return the input gradients from the losses' gradients. The other outputs must have no gradient."""
        length, batch, size = hidden.shape
        part = length // self.num_chunks
        label_rows = self.reshape(labels, (batch, length))
        maxima = self.reshape(out[1], (batch, length))
        sums = self.reshape(out[2], (batch, length))
        # MindSpore divides a loss's gradient by the number of devices that compute the loss.
        scales = self.reshape(dout[0], (batch, length)) * self.shards
        gradients = NOTHING
        weight_gradient = None
        done = scales
        for index in range(self.num_chunks):
            start = index * part
            rows = self.reshape(ops.depend(hidden[start : start + part], done), (part * batch, size))
            logits = self.cast(self.logits_of(rows, weight), ms.float32)
            centred = self.sub(logits, self.by_position(maxima[:, start : start + part], part * batch))
            log_softmax = self.sub(centred, self.by_position(sums[:, start : start + part], part * batch))
            own_labels = ops.depend(label_rows[:, start : start + part], log_softmax)
            target = self.one_hot_labels(own_labels, part * batch, weight.shape[0])
            scale = self.by_position(scales[:, start : start + part], part * batch)
            gradient = self.cast((self.exp(log_softmax) - target) * scale, self.compute_dtype)
            of_rows = self.cast(self.input_gradient(gradient, weight), hidden.dtype)
            of_weight = self.cast(self.weight_gradient(gradient, rows), ms.float32)
            weight_gradient = of_weight if index == 0 else weight_gradient + of_weight
            gradients += (self.reshape(of_rows, (part, batch, size)),)
            done = (of_rows, weight_gradient)
        return self.join_rows(gradients), self.cast(weight_gradient, weight.dtype), ops.zeros_like(labels)

    def one_hot_labels(self, labels: Tensor, num_tokens: int, num_classes: int) -> Tensor:
        """Return int32 (num_tokens, num_classes) from whole-vocabulary labels (batch, part)."""
        own = self.reshape(self.transpose(labels, (1, 0)), (num_tokens,)) - self.shard_index * num_classes
        return self.one_hot(own, num_classes, self.on, self.off)

    def by_row(self, values: Tensor, part: int, batch: int) -> Tensor:
        """Return (batch, part) from values of tokens (part * batch, 1)."""
        return self.transpose(self.reshape(values, (part, batch)), (1, 0))

    def by_position(self, values: Tensor, num_tokens: int) -> Tensor:
        """Return (part * batch, 1) from values (batch, part)."""
        return self.reshape(self.transpose(values, (1, 0)), (num_tokens, 1))


class ChunkedLoss(CrossEntropyLoss):
    """MindFormers' loss, computed from hidden states instead of logits: the mean over tokens selected by the mask."""

    def __init__(self, upstream: CrossEntropyLoss, config: Any, num_chunks: int) -> None:
        super().__init__(config)
        self.token_losses = TokenLosses(config, num_chunks)
        self.mean = getattr(upstream, "mean", None)  # set for CPU targets with several processes

    def construct(self, hidden: Tensor, weight: Tensor, labels: Tensor, input_mask: Tensor) -> Tensor:
        """Return the mean loss, float32."""
        losses, _, _ = self.token_losses(hidden, weight, labels)
        mask = self.cast(ops.depend(self.reshape(input_mask, (-1,)), losses), ms.float32)
        if self.mean is not None:
            return self.mean(losses, mask)
        numerator = self.sum2(self.mul2(losses, mask))
        return self.div2(numerator, self.add2(self.sum2(mask), 1e-8))


class ChunkedGPTModel(GPTModel):
    """A GPTModel whose loss takes the hidden states. It is only for training because it has no logits to return."""

    def construct(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input: Tensor | None = None,
        labels: Tensor | None = None,
        extra_block_kwargs: dict[str, Any] | None = None,
        prefix_keys_values: Tensor | None = None,
        loss_mask: Tensor | None = None,
        actual_seq_len: Tensor | None = None,
    ) -> Any:
        """Return the losses as GPTModel does: the language-model loss, and three that are 0 for dense models."""
        if not self.config.use_eod_reset:
            position_ids = None
        if actual_seq_len is not None:
            actual_seq_len = self.reshape(actual_seq_len, (-1,))
        labels, attention_mask, loss_mask, local_labels, local_mask = self._preprocess_input_labels_and_masks(
            input_ids, labels, attention_mask, loss_mask
        )
        hidden, _, extra_loss, attention_loss = self.language_model(
            input_ids,
            position_ids,
            attention_mask,
            decoder_input=decoder_input,
            prefix_keys_values=prefix_keys_values,
            actual_seq_len=actual_seq_len,
        )
        weight = (
            self.embedding.word_embeddings.weight
            if self.share_embeddings_and_output_weights
            else self.output_layer.weight
        )
        return self.loss(hidden, weight, local_labels, local_mask), self.init_mtp_loss, extra_loss, attention_loss


def chunk_loss(network: Any, num_chunks: int) -> None:
    """Make a network compute the loss in chunks."""
    model = find_gpt_model(network)
    model.__class__ = ChunkedGPTModel
    model.loss = ChunkedLoss(model.loss, model.config, num_chunks)
    if model.pp > 1:
        model.loss.token_losses.pipeline_stage = model.pp - 1


def chunk_losses(num_chunks: int) -> None:
    """Make networks that MindFormers' trainer builds after this call compute the loss in chunks."""
    change_built_networks(partial(chunk_loss, num_chunks=num_chunks))
