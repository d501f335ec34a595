"""The MindRecord files are identical to those of MindSpore's writer and readable by MindSpore."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from mindspore.dataset import MindDataset
from mindspore.mindrecord import FileWriter

from ascend_cpt.data.packed import mindrecord_writer as mindrecord_format
from ascend_cpt.data.packed.mindrecord import MindRecordWriter, iter_rows
from ascend_cpt.data.packed.token_stream import read_rows
from ascend_cpt.errors import DataError

Rows = npt.NDArray[np.int32]


def write_with_library(path: Path, rows: Rows) -> None:
    writer = FileWriter(str(path), shard_num=1)
    writer.add_schema({"input_ids": {"type": "int32", "shape": [-1]}}, "packed token ids")
    for begin in range(0, len(rows), 100):
        writer.write_raw_data([{"input_ids": row} for row in rows[begin : begin + 100]])
    writer.commit()


def write(path: Path, rows: Rows, pieces: Sequence[int] = ()) -> None:
    writer = MindRecordWriter(path)
    for piece in np.split(rows, sorted(min(piece, len(rows)) for piece in pieces)):
        writer.write(piece)
    writer.close()
    assert writer.num_rows == len(rows)


def read_index(path: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(f"{path}.db")) as connection:
        tables = connection.execute("SELECT type, name, sql FROM sqlite_master ORDER BY name").fetchall()
        names = connection.execute("SELECT * FROM SHARD_NAME").fetchall()
        return [*tables, *names, *connection.execute("SELECT * FROM INDEXES ORDER BY ROW_ID").fetchall()]


@pytest.mark.parametrize(
    ("num_rows", "length", "largest"),
    [(0, 5, 9), (1, 1, 1), (3, 17, 4096), (500, 6, 40_000), (40, 4097, 151_936), (2500, 4097, 2**31 - 1)],
)
def test_files_are_identical_to_those_of_mindspore(tmp_path: Path, num_rows: int, length: int, largest: int) -> None:
    rows = np.random.default_rng(num_rows).integers(0, largest, (num_rows, length), np.int32)
    if num_rows:
        rows.reshape(-1)[:8] = np.resize([0, 127, 128, 255, 256, 32767, 32768, 2**31 - 1], min(8, rows.size))
    (tmp_path / "theirs").mkdir()
    (tmp_path / "ours").mkdir()
    theirs, ours = tmp_path / "theirs" / "x.mindrecord0", tmp_path / "ours" / "x.mindrecord0"
    write_with_library(theirs, rows)
    write(ours, rows, [1, 1, 7, num_rows // 2])
    assert ours.read_bytes() == theirs.read_bytes()
    assert read_index(ours) == read_index(theirs)
    assert oct(ours.stat().st_mode)[-3:] == "644"


@pytest.mark.parametrize(("num_rows", "length"), [(3, 17), (2500, 4097)])
def test_rows_of_the_library_are_read_without_it(tmp_path: Path, num_rows: int, length: int) -> None:
    rows = np.random.default_rng(0).integers(0, 2**31 - 1, (num_rows, length), np.int32)
    write_with_library(tmp_path / "x.mindrecord0", rows)
    np.testing.assert_array_equal(read_rows(tmp_path / "x.mindrecord0", 0, num_rows - 1), rows)
    np.testing.assert_array_equal(read_rows(tmp_path / "x.mindrecord0", num_rows - 2, num_rows - 1), rows[-2:])


@pytest.mark.parametrize("page_bytes", [1 << 25, 1 << 15])
def test_mindspore_reads_rows_in_many_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page_bytes: int) -> None:
    """Uses the smallest page size that MindSpore supports, to get several raw pages."""
    monkeypatch.setattr(mindrecord_format, "PAGE_BYTES", page_bytes)
    rows = np.arange(30_000, dtype=np.int32).reshape(-1, 3)
    write(tmp_path / "x.mindrecord0", rows, [5, 4000])
    np.testing.assert_array_equal(np.concatenate(list(iter_rows(tmp_path / "x.mindrecord0"))), rows)
    dataset = MindDataset(str(tmp_path / "x.mindrecord0"), shuffle=False, num_shards=3, shard_id=1)
    part = [row["input_ids"] for row in dataset.create_dict_iterator(num_epochs=1, output_numpy=True)]
    assert len(part) == -(-len(rows) // 3)


def test_row_larger_than_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mindrecord_format, "PAGE_BYTES", 1 << 15)
    writer = MindRecordWriter(tmp_path / "x.mindrecord0")
    with pytest.raises(DataError, match="a row of 40000 tokens does not fit into a page"):
        writer.write(np.zeros((1, 40_000), np.int32))


def test_invalid_file(tmp_path: Path) -> None:
    write(tmp_path / "x.mindrecord0", np.ones((2, 3), np.int32))
    (tmp_path / "x.mindrecord0").write_bytes(b"no MindRecord")
    with pytest.raises(DataError, match=r"x\.mindrecord0: cannot be read \(not a MindRecord file\)"):
        list(iter_rows(tmp_path / "x.mindrecord0"))
