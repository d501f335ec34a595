"""Loss on held-out sets, computed in the training process with the training network."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from mindspore import Tensor, nn

from ascend_cpt.backend.collectives import is_pure_data_parallel, sum_over_ranks
from ascend_cpt.backend.training.data_loader import PackedRows
from ascend_cpt.data.packed.manifest import Manifest
from ascend_cpt.data.packed.network_inputs import IGNORE_LABEL, RowFormat
from ascend_cpt.data.packed.row_choice import choose_rows
from ascend_cpt.monitor.record import ValidationRecord
from ascend_cpt.run.resolved_run import Dataset


class LossCell(nn.Cell):
    """The training network's forward pass; returns the mean loss over the labels that are not ignored."""

    def __init__(self, network: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, *inputs: Tensor) -> Tensor:
        """Return the language-model loss, float32 scalar; the inputs are batches of those of `RowFormat`."""
        outputs = self.network(*inputs)
        return outputs[0]  # the others are auxiliary losses of MoE models


class Evaluator:
    """Computes the loss of each validation set; all ranks share the work."""

    def __init__(
        self,
        network: nn.Cell,
        datasets: Sequence[Dataset],
        *,
        row_format: RowFormat,
        batch_size: int,
        rank: int,
        num_ranks: int,
        max_rows: int | None,
    ) -> None:
        self._replicated = is_pure_data_parallel()
        cell: nn.Cell = LossCell(find_data_network(network))
        if not self._replicated:
            from mindspore.nn.wrap.cell_wrapper import _VirtualDatasetCell

            cell = _VirtualDatasetCell(cell)
        # Training mode: otherwise an mcore network returns no loss. The configuration checks reject dropout.
        self._cell = cell.set_train(True)
        self._datasets, self._format, self._max_rows = datasets, row_format, max_rows
        self._batch_size, self._rank, self._num_ranks = batch_size, rank, num_ranks

    def evaluate(self, step: int) -> list[ValidationRecord]:
        """Return the loss of each set, weighted by the number of labels."""
        return [self._evaluate_set(dataset, step) for dataset in self._datasets]

    def _evaluate_set(self, dataset: Dataset, step: int) -> ValidationRecord:
        rows = PackedRows([dataset.manifest], dataset.seq_length)
        chosen = choose_rows(dataset.num_rows, self._max_rows)
        per_batch = self._batch_size * self._num_ranks
        totals = np.zeros(2)  # summed loss, number of labels
        for start in range(0, len(chosen), per_batch):
            batch = self._read_batch(rows, chosen[start : start + per_batch])
            own = slice(self._rank * self._batch_size, (self._rank + 1) * self._batch_size)
            with without_accumulation():
                outputs = self._cell(*(Tensor(column[own]) for column in batch))
            loss = float(outputs.asnumpy().reshape(-1)[0])
            labels = batch[1]
            # In pure data parallel the loss is of this rank's rows, otherwise of the whole batch.
            counted = labels[own] if self._replicated else labels
            num_labels = int((counted != IGNORE_LABEL).sum())
            if num_labels:
                totals += loss * num_labels, num_labels
        if self._replicated:
            totals = sum_over_ranks(totals, self._num_ranks)
        loss = float(totals[0] / totals[1])
        return ValidationRecord(
            step=step,
            name=dataset.name,
            loss=loss,
            num_labels=int(totals[1]),
            bits_per_byte=compute_bits_per_byte(loss, dataset.manifest),
        )

    def _read_batch(self, rows: PackedRows, numbers: np.ndarray) -> list[np.ndarray]:
        """Return the inputs of a global batch by column; a short batch is padded with rows whose labels are ignored."""
        packed = rows.read(np.zeros_like(numbers), numbers)
        missing = self._batch_size * self._num_ranks - len(packed)
        packed = np.concatenate([packed, np.repeat(packed[:1], missing, axis=0)])
        made = [self._format.make(row, place) for place, row in enumerate(packed)]
        columns = [np.stack(column) for column in zip(*made, strict=True)]
        columns[1][len(numbers) :] = IGNORE_LABEL
        return columns


@contextmanager
def without_accumulation() -> Iterator[None]:
    """Compile the graphs that are first called inside without gradient accumulation.

    Compiling the training graph leaves its number of micro batches in MindSpore's global parallel context. With a
    sharded optimizer, a graph that is compiled later then needs an accumulation buffer for every weight, which a
    forward graph does not have ("You should define `accu_grads`").
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


def compute_bits_per_byte(loss: float, manifest: Manifest) -> float | None:
    """Return loss × tokens / (ln 2 × bytes): comparable between tokenizers, unlike the loss (nats per token) itself.

    Tokens and bytes are of the whole set, even if `max_rows` limits the evaluation. None without text.
    """
    if not manifest.text_bytes:
        return None
    num_tokens = manifest.num_tokens + sum(shard.dropped_tokens for shard in manifest.shards)
    return loss * num_tokens / (math.log(2) * manifest.text_bytes)


def find_data_network(network: nn.Cell) -> nn.Cell:
    """Return the cell inside MindFormers' training wrappers that takes the inputs of `RowFormat`."""
    from mindformers.wrapper.wrapper import DataOrderWrapperCell

    cell: object = network
    while not isinstance(cell, DataOrderWrapperCell):
        inner = getattr(cell, "network", None) or getattr(cell, "_backbone", None)
        assert inner is not None, f"no DataOrderWrapperCell in {type(network).__name__}"
        cell = inner
    return cell
