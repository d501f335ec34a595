"""The data loader: every rank reads its part of the same global batches; padding is masked in the loss."""

from __future__ import annotations

from pathlib import Path

import mindspore.dataset as ds
import numpy as np
import pytest

from ascend_cpt.backend.training.data_loader import CptPackedDataLoader, PackedRows, RunRows
from ascend_cpt.data.packed.manifest import Manifest, Shard, load_manifest, manifest_path, write_manifest
from ascend_cpt.data.packed.megatron_indexed import IndexedWriter
from ascend_cpt.data.packed.megatron_rows import count_rows
from ascend_cpt.data.packed.network_inputs import IGNORE_LABEL, RowFormat
from ascend_cpt.data.tokenizing.base import Encoded
from ascend_cpt.errors import DataError
from ascend_cpt.recipe.blend import normalize_shares
from ascend_cpt.recipe.budget import BatchSteps
from ascend_cpt.recipe.phases import Phase, SampleOrder

SEQ_LENGTH = 64


ROW_FORMAT = RowFormat(seq_length=SEQ_LENGTH, pad_id=511, eod_id=0)


def make_order(num_steps: int = 20, **num_rows: int) -> SampleOrder:
    phase = Phase(name="train", first_step=0, stop_step=num_steps)
    return SampleOrder(num_rows=num_rows or {"train": 100}, phases=(phase,), global_batch_size=8, seed=7)


def make_rows(packed: Path, num_ranks: int, rank: int) -> RunRows:
    rows = PackedRows([load_manifest(packed)], SEQ_LENGTH)
    return RunRows(rows, make_order(), rank=rank, num_ranks=num_ranks, batch_size=8 // num_ranks, row_format=ROW_FORMAT)


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_ranks_share_every_global_batch_exactly(packed: Path, num_ranks: int) -> None:
    ranks = [make_rows(packed, num_ranks, rank) for rank in range(num_ranks)]
    per_step = 8 // num_ranks
    for step in range(20):
        items = np.arange(step * per_step, (step + 1) * per_step)
        positions = np.concatenate([rank.to_positions(items) for rank in ranks])
        assert positions.tolist() == list(range(step * 8, (step + 1) * 8))


@pytest.mark.parametrize(("num_ranks", "micro"), [(1, 4), (2, 2), (4, 1), (2, 1)])
def test_ranks_share_the_batches_of_a_ramp(packed: Path, num_ranks: int, micro: int) -> None:
    ramp = BatchSteps(first_steps=(0, 5, 9), sizes=(8, 4, 12))
    phase = Phase(name="train", first_step=0, stop_step=12)
    order = SampleOrder(num_rows={"train": 100}, phases=(phase,), global_batch_size=12, seed=7, ramp=ramp)
    rows = PackedRows([load_manifest(packed)], SEQ_LENGTH)
    trained: list[int] = []
    for first, stop, size in ((0, 5, 8), (5, 9, 4), (9, 12, 12)):
        ranks = [
            RunRows(
                rows,
                order,
                rank=rank,
                num_ranks=num_ranks,
                batch_size=micro,
                row_format=ROW_FORMAT,
                ramp_step=stop - 1,
            )
            for rank in range(num_ranks)
        ]
        per_step = size // num_ranks
        assert len(ranks[0]) == 12 * per_step
        assert all(0 <= position < order.total_rows for position in ranks[0].to_positions(np.arange(12 * per_step)))
        for step in range(first, stop):
            items = np.arange(step * per_step, (step + 1) * per_step)
            trained += sorted(np.concatenate([rank.to_positions(items) for rank in ranks]).tolist())
    assert trained == list(range(order.total_rows)) == list(range(5 * 8 + 4 * 4 + 3 * 12))


def test_rows_are_read_in_run_order(packed: Path) -> None:
    manifest = load_manifest(packed)
    files = [str(manifest.folder / shard.file) for shard in manifest.shards]
    stored = [row[0] for row in ds.MindDataset(files, shuffle=False).create_tuple_iterator(output_numpy=True)]
    source = make_rows(packed, 1, 0)
    _, order = make_order().locate(np.arange(160))
    for index in (0, 1, 99, 100, 159, 3):  # across the boundary of an epoch, and back
        inputs, labels = source[index]
        assert inputs.tolist() == stored[order[index]][:-1].tolist()
        real = labels != IGNORE_LABEL
        assert labels[real].tolist() == stored[order[index]][1:][real].tolist()
    assert len(source) == 160
    with pytest.raises(IndexError):
        source[160]


def test_changed_dataset_is_refused(packed: Path) -> None:
    with pytest.raises(DataError, match="changed after this run was configured"):
        CptPackedDataLoader(
            manifests=[str(manifest_path(packed))],
            digests=["other"],
            row_format=ROW_FORMAT.to_record(),
            sample_order=make_order().to_record(),
            column_names=["input_ids", "labels"],
            batch_size=8,
        )


@pytest.fixture(scope="module")
def mmap_dataset(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the prefix of an mmap dataset of 640 ids in three documents: nine rows of 65 ids and one of 55."""
    prefix = tmp_path_factory.mktemp("mmap") / "more_text_document"
    writer = IndexedWriter(prefix, np.dtype(np.uint16))
    writer.write(Encoded(np.arange(640, dtype=np.int32) % 500, np.array([0, 100, 400, 640])))
    writer.close()
    shard = Shard(
        file=f"{prefix.name}.bin",
        size_bytes=1280,
        sha256="",
        index_file=f"{prefix.name}.idx",
        index_size_bytes=prefix.with_suffix(".idx").stat().st_size,
        index_sha256="",
        num_rows=0,
        num_tokens=640,
        num_documents=3,
        text_bytes=640,
    )
    tokenizer = load_manifest(packed).tokenizer
    manifest = Manifest(key="text", output_format="mmap", seq_length=None, tokenizer=tokenizer, shards=(shard,))
    write_manifest(manifest, manifest_path(prefix))
    return prefix


def test_mmap_dataset_is_cut_into_rows(mmap_dataset: Path) -> None:
    manifest = load_manifest(mmap_dataset)
    assert count_rows(manifest, SEQ_LENGTH) == 10
    rows = PackedRows([manifest], SEQ_LENGTH).read(np.zeros(3, np.int64), np.array([9, 0, 1]))
    assert rows.dtype == np.int32 and rows.shape == (3, 65)
    assert rows[0].tolist() == [*(np.arange(585, 640) % 500), *[511] * 10]
    assert rows[1].tolist() == list(range(65)) and rows[2].tolist() == list(range(65, 130))


def test_blend_of_both_formats(packed: Path, mmap_dataset: Path) -> None:
    manifests = [load_manifest(packed), load_manifest(mmap_dataset)]
    phase = Phase(name="train", first_step=0, stop_step=2, shares=normalize_shares({"train": 3, "more": 1}))
    order = SampleOrder(num_rows={"train": 100, "more": 10}, phases=(phase,), global_batch_size=8, seed=7)
    source = RunRows(PackedRows(manifests, SEQ_LENGTH), order, rank=0, num_ranks=1, batch_size=8, row_format=ROW_FORMAT)
    sources, numbers = order.locate(np.arange(16))
    assert sources.tolist().count(1) == 4
    for index in range(16):
        expected = PackedRows([manifests[sources[index]]], SEQ_LENGTH).read(np.array([0]), numbers[index : index + 1])
        assert source[index][0].tolist() == expected[0][:-1].tolist()
