"""The rows of a run: every rank reads its own part of the same global batches; padding carries no loss."""

from __future__ import annotations

from pathlib import Path

import mindspore.dataset as ds
import numpy as np
import pytest

from ascend_cpt.backend.dataset import IGNORE_LABEL, CptPackedDataLoader, PackedRows, RunRows, split_row
from ascend_cpt.data.manifest import load_manifest, manifest_path
from ascend_cpt.errors import DataError
from ascend_cpt.recipe.order import RowOrder


def make_rows(packed: Path, num_ranks: int, rank: int, total_rows: int = 160) -> RunRows:
    rows = PackedRows([load_manifest(packed)])
    order = RowOrder(num_rows=rows.num_rows, seed=7)
    batch_size = 8 // num_ranks
    return RunRows(
        rows, order, total_rows=total_rows, rank=rank, num_ranks=num_ranks, batch_size=batch_size, pad_id=511
    )


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_ranks_share_every_global_batch_exactly(packed: Path, num_ranks: int) -> None:
    ranks = [make_rows(packed, num_ranks, rank) for rank in range(num_ranks)]
    per_step = 8 // num_ranks
    for step in range(20):
        items = np.arange(step * per_step, (step + 1) * per_step)
        positions = np.concatenate([rank.to_positions(items) for rank in ranks])
        assert positions.tolist() == list(range(step * 8, (step + 1) * 8))


def test_rows_come_in_the_order_of_the_run(packed: Path) -> None:
    manifest = load_manifest(packed)
    files = [str(manifest.folder / shard.file) for shard in manifest.shards]
    stored = [row[0] for row in ds.MindDataset(files, shuffle=False).create_tuple_iterator(output_numpy=True)]
    source = make_rows(packed, 1, 0)
    order = RowOrder(num_rows=100, seed=7).rows_at(np.arange(160))
    for index in (0, 1, 99, 100, 159, 3):  # over the border of an epoch, and back
        inputs, labels = source[index]
        assert inputs.tolist() == stored[order[index]][:-1].tolist()
        real = labels != IGNORE_LABEL
        assert labels[real].tolist() == stored[order[index]][1:][real].tolist()
    assert len(source) == 160
    with pytest.raises(IndexError):
        source[160]


def test_padding_carries_no_loss() -> None:
    row = np.array([5, 6, 9, 7, 9, 9, 9], dtype=np.int32)
    inputs, labels = split_row(row, pad_id=9)
    assert inputs.tolist() == [5, 6, 9, 7, 9, 9]
    assert labels.tolist() == [6, 9, 7, IGNORE_LABEL, IGNORE_LABEL, IGNORE_LABEL]
    assert split_row(row, pad_id=1)[1].tolist() == [6, 9, 7, 9, 9, 9]
    assert split_row(np.full(4, 9, dtype=np.int32), pad_id=9)[1].tolist() == [IGNORE_LABEL] * 3


def test_a_dataset_that_was_changed_is_refused(packed: Path) -> None:
    with pytest.raises(DataError, match="was changed after this run was configured"):
        CptPackedDataLoader(
            manifests=[str(manifest_path(packed))],
            digests=["other"],
            total_rows=8,
            shuffle_seed=1,
            column_names=["input_ids", "labels"],
            batch_size=8,
        )
