"""Computes losses on held-out sets and task scores in the training process, using the training network."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ascend_cpt.backend.models.experts.sums import keep_router_state
from ascend_cpt.backend.training.data_loader import PackedRows
from ascend_cpt.backend.training.row_scorer import RowScorer
from ascend_cpt.data.packed.manifest import Manifest
from ascend_cpt.data.packed.row_choice import choose_rows
from ascend_cpt.monitor.record import Judged, TaskRecord, ValidationRecord
from ascend_cpt.run.resolved_run import Dataset
from ascend_cpt.tasks.load import Request, Task
from ascend_cpt.tasks.score import score_task


class Evaluator:
    """Computes the loss on each validation set and the score on each task. All ranks share the work."""

    def __init__(
        self, scorer: RowScorer, datasets: Sequence[Dataset], tasks: Sequence[Task], *, max_rows: int | None
    ) -> None:
        self._scorer, self._datasets, self._tasks, self._max_rows = scorer, datasets, tasks, max_rows

    def evaluate(self, step: int) -> list[Judged]:
        """Return the loss on each set, weighted by the number of labels, and the score on each task."""
        with keep_router_state(self._scorer.training_network):
            losses = [self._evaluate_set(dataset, step) for dataset in self._datasets]
            return [*losses, *(self._evaluate_task(task, step) for task in self._tasks)]

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

    def _evaluate_task(self, task: Task, step: int) -> TaskRecord:
        score = score_task(task, *score_requests(self._scorer, task.requests))
        return TaskRecord(
            step=step,
            name=task.name,
            metric=score.metric,
            score=score.score,
            num_items=score.num_items,
            values=dict(score.metrics),
            higher_is_better=score.higher_is_better,
        )


def score_requests(
    scorer: RowScorer, requests: Sequence[Request]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Return each continuation's log-likelihood (nats), and whether greedy decoding would produce it."""
    losses: list[float] = []
    hits: list[float] = []
    for start in range(0, len(requests), scorer.rows_per_score):
        batch = requests[start : start + scorer.rows_per_score]
        rows = []
        for request in batch:
            tokens = np.array(request.context + request.continuation, np.int32)
            rows.append((tokens, np.arange(1, len(tokens)) >= len(request.context)))
        batch_losses, batch_hits = scorer.score(rows)
        losses += batch_losses.tolist()
        hits += batch_hits.tolist()
    lengths = np.array([len(request.continuation) for request in requests])
    return -np.array(losses), np.array(hits) == lengths


def compute_bits_per_byte(loss: float, manifest: Manifest) -> float | None:
    """Return loss × tokens / (ln 2 × bytes), which is comparable between tokenizers, unlike the loss (nats per token).

    Tokens and bytes cover the whole set, even if `max_rows` limits the evaluation. Without text, return None.
    """
    if not manifest.text_bytes:
        return None
    num_tokens = manifest.num_tokens + sum(shard.dropped_tokens for shard in manifest.shards)
    return loss * num_tokens / (math.log(2) * manifest.text_bytes)
