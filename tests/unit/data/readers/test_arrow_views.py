"""Arrow columns of the view types."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from ascend_cpt.data.readers.formats import ReadOptions, load_reader
from ascend_cpt.data.readers.input_files import find_input_files
from ascend_cpt.errors import DataError


@pytest.mark.parametrize("stream", [False, True])
def test_views_are_read_like_text(tmp_path: Path, stream: bool) -> None:
    """Columns of type string_view and binary_view; bad UTF-8 rejects only its row."""
    views = pa.array([b"a", "é".encode() * 20, None, b"\xff" * 20], pa.binary_view())
    table = pa.table({"text": views.view(pa.string_view()), "raw": views})
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(tmp_path / "x.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    (file,) = find_input_files([str(tmp_path / "x.arrow")])
    options = ReadOptions(columns=None)
    extents = load_reader("arrow").measure(file, options)
    assert sum(extent.num_positions for extent in extents) == 4
    records = list(load_reader("arrow").read(file, 1, options))
    assert [record.row and record.row["text"] for record in records] == ["é" * 20, None, None]
    assert [record.problem for record in records] == ["", "", "invalid_utf8"]
    assert records[0].row is not None and records[0].row["raw"] == "é".encode() * 20


def test_views_in_lists_are_refused_in_one_line(tmp_path: Path) -> None:
    table = pa.table({"text": ["a"], "tags": pa.array([["b" * 30]], pa.list_(pa.string_view()))})
    with pa.ipc.new_file(tmp_path / "x.arrow", table.schema) as writer:
        writer.write_table(table)
    (file,) = find_input_files([str(tmp_path / "x.arrow")])
    with pytest.raises(DataError, match=r"x.arrow: column 'tags' has type list<item: string_view>; nested views"):
        list(load_reader("arrow").read(file, 0, ReadOptions(columns=None)))
    assert [record.row for record in load_reader("arrow").read(file, 0, ReadOptions(columns=("text",)))] == [
        {"text": "a"}
    ]
