"""Computes per-row losses with a training run's weights and layout.

The training network returns a batch's mean loss. While a scoring graph is compiled, the loss cell is replaced by
`RowSums`, which returns one sum per row instead. Without pipeline stages, the graph is the forward pass. With stages,
MindSpore 2.9 cannot compile only the forward pass of a training network, so the graph includes the backward pass but
not the optimizer. It costs as much as a training step and changes no weight, optimizer state or step counter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import mindspore as ms
import numpy as np
import numpy.typing as npt
from mindformers.parallel_core.training_graph.loss_func import CrossEntropyLoss
from mindformers.wrapper.wrapper import (
    DataOrderWrapperCell,
    PipelineCellWithMultiOutputs,
    grad_scale,
    shard_grad_scale,
)
from mindspore import Tensor, nn, ops
from mindspore.nn.wrap.cell_wrapper import _VirtualDatasetCell
from mindspore.ops.auto_generate import SumExt

from ascend_cpt.backend.collectives import is_pure_data_parallel, sum_over_ranks
from ascend_cpt.backend.models.chunked_loss import ChunkedLoss
from ascend_cpt.config.parallel_layout import ParallelLayout
from ascend_cpt.data.packed.network_inputs import IGNORE_LABEL, RowFormat

Sums = npt.NDArray[np.float64]


class RowSums(nn.Cell):
    """Sums for each row of a batch, instead of MindFormers' mean loss.

    Returns float32 of shape (1, 2 * rows): first each row's loss (nats) over its labels that are not ignored, then
    the number of these labels that are the most likely token. The first dimension keeps MindSpore from splitting
    the sums across a pipeline stage's devices when it adds up the micro-batch results.
    """

    def __init__(self, upstream: CrossEntropyLoss, seq_length: int) -> None:
        super().__init__(auto_prefix=False)
        self.upstream = upstream
        self.seq_length = seq_length
        # As in upstream's sums, every device has the values for all tokens in the batch.
        self.sum = SumExt().shard(((1, 1),))

    def sum_rows(self, losses: Tensor, least: Tensor, input_mask: Tensor) -> Tensor:
        """Return the sums, given each token's loss and the loss that its most likely label would have."""
        is_best = ops.cast(ops.stop_gradient(losses) <= least, ms.float32)
        mask = ops.cast(input_mask.reshape(-1), ms.float32)
        num_rows = losses.shape[0] // self.seq_length
        sums = [
            self.sum(self.upstream.mul2(values, mask).reshape(num_rows, self.seq_length), -1)
            for values in (losses, is_best)
        ]
        return ops.concat(sums).reshape(1, 2 * num_rows)


class LogitsRowSums(RowSums):
    """Computes the sums from logits, with the same arguments as CrossEntropyLoss."""

    def construct(self, logits: Tensor, labels: Tensor, input_mask: Tensor) -> Tensor:
        upstream = self.upstream
        if upstream.enable_force_redistribute:
            logits, labels = upstream.add(logits, 0), upstream.add_label(labels, 0)
        log_probabilities, one_hot = upstream._log_softmax(logits, labels)
        losses = upstream._nllloss(log_probabilities, one_hot)
        _, best = upstream._log_softmax.max(ops.stop_gradient(log_probabilities))
        return self.sum_rows(losses, -best.reshape(-1), input_mask)


class ChunkedRowSums(RowSums):
    """Computes the sums from hidden states for `cpt.loss_chunks`, with the same arguments as ChunkedLoss."""

    def construct(self, hidden: Tensor, weight: Tensor, labels: Tensor, input_mask: Tensor) -> Tensor:
        # The most likely label has the largest logit, so its loss is log(sum(exp(logit - largest))).
        losses, _, least = self.upstream.token_losses(hidden, weight, labels)
        return self.sum_rows(losses, ops.stop_gradient(least), input_mask)


class ForwardCell(nn.Cell):
    """The training network's forward pass. The inputs are batches of `RowFormat` inputs."""

    def __init__(self, network: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, *inputs: Tensor) -> Tensor:
        """Return the language-model loss."""
        outputs = self.network(*inputs)
        return outputs[0]  # the others are auxiliary losses of MoE models


class StagedCell(nn.Cell):
    """The forward and backward pass of all micro batches with pipeline stages. Gradients are discarded."""

    def __init__(self, wrapper: Any) -> None:
        super().__init__(auto_prefix=False)
        self.wrapper = wrapper
        # The training network returns several losses, which MindSpore requires to have the same shape.
        forward = ForwardCell(find_data_network(wrapper))
        self.network = _VirtualDatasetCell(PipelineCellWithMultiOutputs(forward, wrapper.micro_size))
        self.network.add_flags(defer_inline=True)

    def construct(self, *inputs: Tensor) -> Tensor:
        """Return the language-model loss summed over micro batches. Only the last stage has it."""
        wrapper = self.wrapper
        loss = self.network(*inputs)
        sensitivity = ops.ones_like(loss) * ops.cast(wrapper.scale_sense, ms.float32)  # must not be a constant
        grads = wrapper.grad(self.network, wrapper.weights)(*inputs, sensitivity)
        # As in the training step, this resets the accumulated gradients to zero.
        if wrapper.opt_shard:
            rescale, sums = shard_grad_scale, wrapper.accu_grads
            grads = wrapper.grad_reducer(grads)
        else:
            rescale, sums = grad_scale, wrapper.grad_reducer(wrapper.accu_grads)
        factor = wrapper.grad_scale_factor
        grads = wrapper.hyper_map(ops.partial(rescale, wrapper.scale_sense * wrapper.degree, factor), grads, sums)
        return ops.depend(loss, grads)


class RowScorer:
    """Scores rows with a training run's weights. All ranks pass the same rows and get the same result.

    Args:
        network: MindFormers' training wrapper around the network.
        row_format: How rows become network inputs.
        layout: The run's layout.
        num_micro_batches: Micro batches per call with pipeline stages, else 1.
        data_rank: This rank's data-parallel index.
        gives_loss: With pipeline stages, whether this is the last-stage rank whose result is used.
    """

    def __init__(
        self,
        network: nn.Cell,
        *,
        row_format: RowFormat,
        layout: ParallelLayout,
        num_micro_batches: int,
        data_rank: int,
        gives_loss: bool,
    ) -> None:
        self._format, self._layout, self._data_rank, self._gives_loss = row_format, layout, data_rank, gives_loss
        self._one_document = replace(row_format, eod_id=-1)
        self._is_staged = layout.pipeline_parallel > 1
        self._num_micro_batches = num_micro_batches if self._is_staged else 1
        self._is_replicated = is_pure_data_parallel()
        cell: nn.Cell = StagedCell(network) if self._is_staged else ForwardCell(find_data_network(network))
        if not self._is_staged and not self._is_replicated:
            cell = _VirtualDatasetCell(cell)
        # Outside training mode, an mcore network returns no loss. The configuration checks reject dropout.
        self.cell = cell.set_train(True)
        """The scoring graph."""
        self.training_network = network
        self._loss_owner = _find_loss_owner(network)
        loss = self._loss_owner.loss
        row_sums = ChunkedRowSums if isinstance(loss, ChunkedLoss) else LogitsRowSums
        self._row_sums = row_sums(loss, row_format.seq_length)

    @property
    def rows_per_score(self) -> int:
        """Rows per call of `score`: one micro batch per data-parallel rank."""
        return self._format.micro_batch_size * self._layout.data_parallel

    @property
    def rows_per_sum(self) -> int:
        """Rows per call of `sum`."""
        return self.rows_per_score * self._num_micro_batches

    def sum(self, rows: Sequence[npt.NDArray[np.int32]]) -> tuple[float, int]:
        """Return the summed loss (nats) of up to `rows_per_sum` packed rows, and their number of labels."""
        assert len(rows) <= self.rows_per_sum
        losses, _, num_labels = self._run([(row, None) for row in rows])
        return float(losses.sum()), num_labels

    def score(self, rows: Sequence[tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]]) -> tuple[Sums, Sums]:
        """Return each row's summed loss (nats) and its number of most likely labels, for up to `rows_per_score` rows.

        Args:
            rows: Rows of up to seq_length + 1 tokens, each with a mask (len(row) - 1,) of the labels that count. A row
                is treated as one document, whatever its tokens are.
        """
        assert len(rows) <= self.rows_per_score
        losses, hits, _ = self._run(list(rows))
        return losses[: len(rows)], hits[: len(rows)]

    def _run(self, rows: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_] | None]]) -> tuple[Sums, Sums, int]:
        """Return losses and hits by micro-batch position, summed over micro batches, and the number of labels."""
        columns, num_labels = self._make_columns(rows)
        with without_accumulation(), self._sum_rows(), keep_compile_phase(self.training_network):
            output = self.cell(*(Tensor(column) for column in columns))
        values = self._share(output.asnumpy())
        return values[0].astype(np.float64), values[1].astype(np.float64), num_labels

    def _make_columns(
        self, rows: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_] | None]]
    ) -> tuple[list[npt.NDArray[Any]], int]:
        """Return this rank's inputs by column, and the number of labels on all ranks.

        MindSpore splits the batch of all ranks into micro batches, not the batch of each rank: row p is in micro batch
        p // rows_per_score. Missing rows are copies of the first one with ignored labels.
        """
        size, num_labels, own = self._format.micro_batch_size, 0, []
        for place in range(self.rows_per_sum):
            rank, index = divmod(place, size * self._num_micro_batches)
            if place >= len(rows) and rank != self._data_rank:
                continue  # filler rows of another rank, which have no labels
            row, mask = rows[place] if place < len(rows) else (rows[0][0], np.zeros(len(rows[0][0]) - 1, np.bool_))
            row_format = self._format if mask is None else self._one_document
            inputs = list(row_format.make(row, index % size))
            if mask is not None:
                labels = np.full_like(inputs[1], IGNORE_LABEL)
                labels[: len(mask)] = np.where(mask, inputs[1][: len(mask)], IGNORE_LABEL)
                inputs[1] = labels
            # The network also ignores the labels of padding tokens in the input.
            num_labels += int(((inputs[1] != IGNORE_LABEL) & (inputs[0] != row_format.pad_id)).sum())
            if rank == self._data_rank:
                own.append(inputs)
        return [np.stack(column) for column in zip(*own, strict=True)], num_labels

    def _share(self, output: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Gather the graph's results for the rows of all ranks and return an array of shape (2, rows_per_score)."""
        values = np.zeros((2, self.rows_per_score), np.float32)
        if self._is_replicated:
            size = self._format.micro_batch_size
            values[:, self._data_rank * size :][:, :size] = output.reshape(2, size)
        elif not self._is_staged:
            return output.reshape(2, self.rows_per_score)
        elif self._gives_loss:
            values[:] = output.reshape(2, self.rows_per_score)
        return sum_over_ranks(values.reshape(-1), self._layout.world_size).reshape(2, self.rows_per_score)

    @contextmanager
    def _sum_rows(self) -> Iterator[None]:
        """Compile graphs that are first called in this block with `RowSums` as the loss."""
        upstream = self._loss_owner.loss
        self._loss_owner.loss = self._row_sums
        try:
            yield
        finally:
            self._loss_owner.loss = upstream


@contextmanager
def without_accumulation() -> Iterator[None]:
    """Turn off gradient accumulation in graphs that are compiled (first called) in this block.

    Compiling the training graph leaves its number of micro batches in MindSpore's global parallel context. With a
    sharded optimizer, a graph compiled later then needs an accumulation buffer for every weight, which a forward
    graph does not have ("You should define `accu_grads`").
    """
    from mindspore.parallel._auto_parallel_context import auto_parallel_context

    # The Python setter rejects numbers above 1; the underlying C++ setter does not.
    handle = auto_parallel_context()._context_handle
    num_steps = handle.get_grad_accumulation_step()
    handle.set_grad_accumulation_step(1)
    try:
        yield
    finally:
        handle.set_grad_accumulation_step(num_steps)


@contextmanager
def keep_compile_phase(network: nn.Cell) -> Iterator[None]:
    """Restore the training graph's phase, which each call of another graph overwrites in all cells.

    MindSpore uses the phase to look up parameter layouts for a checkpoint. A scoring graph has no optimizer state.
    """
    phase = network.compile_phase
    try:
        yield
    finally:
        if phase is not None:
            network.compile_phase = phase


def find_data_network(network: nn.Cell) -> nn.Cell:
    """Return the cell inside MindFormers' training wrappers that takes the `RowFormat` inputs."""
    cell: object = network
    while not isinstance(cell, DataOrderWrapperCell):
        inner = getattr(cell, "network", None) or getattr(cell, "_backbone", None)
        assert inner is not None, f"no DataOrderWrapperCell in {type(network).__name__}"
        cell = inner
    return cell


def _find_loss_owner(network: nn.Cell) -> Any:
    """Return the model whose attribute `loss` is the loss cell."""
    for _, cell in network.cells_and_names():
        if isinstance(getattr(cell, "loss", None), CrossEntropyLoss):
            return cell
    raise AssertionError(f"no CrossEntropyLoss in {type(network).__name__}")
