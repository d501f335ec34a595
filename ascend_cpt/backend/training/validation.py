"""Loss on held-out sets, computed in the training process with the training network."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ascend_cpt.backend.training.data_loader import PackedRows
from ascend_cpt.backend.training.row_scorer import RowScorer
from ascend_cpt.data.packed.manifest import Manifest
from ascend_cpt.data.packed.row_choice import choose_rows
from ascend_cpt.monitor.record import ValidationRecord
from ascend_cpt.run.resolved_run import Dataset


class Evaluator:
    """Computes the loss of each validation set; all ranks share the work."""

    def __init__(self, scorer: RowScorer, datasets: Sequence[Dataset], *, max_rows: int | None) -> None:
        self._scorer, self._datasets, self._max_rows = scorer, datasets, max_rows

    def evaluate(self, step: int) -> list[ValidationRecord]:
        """Return the loss of each set, weighted by the number of labels."""
        return [self._evaluate_set(dataset, step) for dataset in self._datasets]

    def _evaluate_set(self, dataset: Dataset, step: int) -> ValidationRecord:
        rows = PackedRows([dataset.manifest], dataset.seq_length)
        chosen = choose_rows(dataset.num_rows, self._max_rows)
        per_call = self._scorer.rows_per_sum
        total, num_labels = 0.0, 0
        for start in range(0, len(chosen), per_call):
            numbers = chosen[start : start + per_call]
            loss, labels = self._scorer.sum(list(rows.read(np.zeros(len(numbers), np.int64), numbers)))
            total += loss
            num_labels += labels
        loss = total / num_labels
        return ValidationRecord(
            step=step,
            name=dataset.name,
            loss=loss,
            num_labels=num_labels,
            bits_per_byte=compute_bits_per_byte(loss, dataset.manifest),
        )


def compute_bits_per_byte(loss: float, manifest: Manifest) -> float | None:
    """Return loss × tokens / (ln 2 × bytes): comparable between tokenizers, unlike the loss (nats per token) itself.

    Tokens and bytes are of the whole set, even if `max_rows` limits the evaluation. None without text.
    """
    if not manifest.text_bytes:
        return None
    num_tokens = manifest.num_tokens + sum(shard.dropped_tokens for shard in manifest.shards)
    return loss * num_tokens / (math.log(2) * manifest.text_bytes)
