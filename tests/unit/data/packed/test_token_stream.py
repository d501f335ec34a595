"""The tokens of a dataset are read without MindSpore, from both formats and across rows, pages and files."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ascend_cpt.data.packed import mindrecord_writer, token_stream
from ascend_cpt.data.packed.manifest import Manifest, Shard
from ascend_cpt.data.packed.megatron_indexed import IndexedWriter
from ascend_cpt.data.packed.mindrecord_writer import FormatWriter, pack_rows, unpack_row
from ascend_cpt.data.packed.token_stream import TokenStream, check_rows, read_rows
from ascend_cpt.data.tokenizing.base import Encoded
from ascend_cpt.data.tokenizing.info import TokenizerInfo
from ascend_cpt.errors import DataError

PAD = 1
SEQ_LENGTH = 7
SIZES = (20 * 8, 0, 3 * 8 + 5)
"""Tokens of the files; the last row of the last one is padded."""
STREAM = np.random.default_rng(0).choice([2, 127, 128, 32767, 32768, 151935], sum(SIZES)).astype(np.int32)


def make_manifest(folder: Path, names: list[str], sizes: tuple[int, ...], seq_length: int | None) -> Manifest:
    shards = tuple(
        Shard(
            file=name, size_bytes=1, sha256="", index_file=f"{name}.db", index_size_bytes=1, index_sha256="",
            num_rows=-(-size // 8), num_tokens=size, num_documents=1, text_bytes=1,
        )
        for name, size in zip(names, sizes, strict=True)
    )  # fmt: skip
    tokenizer = TokenizerInfo(type="x", name="x", fingerprint="x", vocab_size=2**18, eod_id=2, pad_id=PAD)
    return Manifest(
        key="text", output_format="mindrecord" if seq_length else "mmap", seq_length=seq_length, tokenizer=tokenizer,
        shards=shards, path=folder / "x.manifest.json",
    )  # fmt: skip


@pytest.fixture
def mindrecord(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    """Write three files with pages of a few rows."""
    monkeypatch.setattr(mindrecord_writer, "PAGE_BYTES", 120)
    names, begin = [f"x.mindrecord{k}" for k in range(3)], 0
    for name, size in zip(names, SIZES, strict=True):
        rows = np.full((-(-size // 8), 8), PAD, np.int32)
        rows.reshape(-1)[:size] = STREAM[begin : begin + size]
        writer = FormatWriter(tmp_path / name)
        writer.write(rows)
        writer.close()
        begin += size
    return make_manifest(tmp_path, names, SIZES, SEQ_LENGTH)


@pytest.fixture
def mmap(tmp_path: Path) -> Manifest:
    writer = IndexedWriter(tmp_path / "y", np.dtype(np.int32))
    writer.write(Encoded(STREAM, np.array([0, 60, len(STREAM)])))
    writer.close()
    return make_manifest(tmp_path, ["y.bin"], (len(STREAM),), None)


@pytest.mark.parametrize("form", ["mindrecord", "mmap"])
def test_tokens(form: str, request: pytest.FixtureRequest) -> None:
    stream = TokenStream(request.getfixturevalue(form))
    assert stream.num_tokens == len(STREAM)
    for start, count in ((0, len(STREAM)), (0, 1), (7, 2), (8, 8), (13, 100), (155, 10), (160, 29), (188, 1), (5, 0)):
        found = stream.read(start, count)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, STREAM[start : start + count])


def test_damaged_files_are_named(mindrecord: Manifest) -> None:
    path = mindrecord.folder / "x.mindrecord0"
    with pytest.raises(DataError, match=r"x\.mindrecord0: has 1 of the rows 19 to 20; copy it again"):
        read_rows(path, 19, 20)
    content = path.read_bytes()
    path.write_bytes(content[: mindrecord_writer.HEADER_BYTES + 30])
    with pytest.raises(DataError, match=r"x\.mindrecord0: cannot be read \(a row is outside the file\); copy it again"):
        TokenStream(mindrecord).read(0, 20)
    (mindrecord.folder / "x.mindrecord0.db").unlink()
    with pytest.raises(DataError, match=r"x\.mindrecord0: cannot be read \(unable to open database file\)"):
        TokenStream(mindrecord).read(0, 20)


@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=40))
def test_rows_are_unpacked(row: list[int]) -> None:
    entry, sizes = pack_rows(np.array([row], np.int32))
    assert sizes.tolist() == [len(entry)] and unpack_row(entry).tolist() == row
    wrong_bitmap = entry[:12] + bytes([entry[12] ^ 64]) + entry[13:]
    for damaged in (entry[:-1], wrong_bitmap):
        with pytest.raises(ValueError, match="a row is damaged"):
            unpack_row(damaged)


def damage_entry(path: Path, row: int, at: int, content: bytes) -> None:
    """Overwrite bytes of the entry of a row."""
    offset, _ = token_stream._find_entries(path, [row])[0]
    with path.open("r+b") as file:
        file.seek(offset + at)
        file.write(content)


@pytest.mark.parametrize(
    ("at", "content"),
    [
        (0, (2**40).to_bytes(8, "little")),
        (0, bytes(8)),
        (8, (2**30).to_bytes(4, "big")),  # ends MindSpore's reader with a segmentation fault
        (8, bytes(4)),
        (12, b"\xaa"),
        (12, b"\xff"),
    ],
)
def test_a_damaged_row_is_found_before_mindspore_reads_it(mindrecord: Manifest, at: int, content: bytes) -> None:
    path = mindrecord.folder / "x.mindrecord0"
    check_rows(path)
    damage_entry(path, 3, at, content)
    check_rows(path, [0, 2, 4])
    for rows in (None, [1, 3, 7], range(2, 5), [3]):
        with pytest.raises(DataError, match=r"x\.mindrecord0: cannot be read \(a row is damaged\); copy it again"):
            check_rows(path, rows)
    with pytest.raises(DataError, match="a row is damaged"):
        check_rows(path, [0], row_length=9)


def test_a_damaged_index_is_named(mindrecord: Manifest) -> None:
    path = mindrecord.folder / "x.mindrecord0"
    index = Path(f"{path}.db")
    with closing(sqlite3.connect(index)) as connection:
        connection.execute("UPDATE INDEXES SET PAGE_OFFSET_BLOB_END = PAGE_OFFSET_BLOB_END + 1 WHERE ROW_ID = 4")
        connection.execute("UPDATE INDEXES SET PAGE_ID_BLOB = 'x' WHERE ROW_ID = 5")
        connection.execute("UPDATE INDEXES SET PAGE_ID_BLOB = -1 WHERE ROW_ID = 6")
        connection.commit()
    for row in (4, 5, 6):
        with pytest.raises(DataError, match=r"x\.mindrecord0: cannot be read \(.*\); copy it again with its index"):
            check_rows(path, [row])
    index.write_bytes(index.read_bytes()[:5000])
    with pytest.raises(DataError, match="cannot be read"):
        check_rows(path)


def test_a_size_that_is_not_used_is_refused() -> None:
    """MindSpore reads eight bytes for the fourth code; the sum of the sizes would be right here."""
    entry, _ = pack_rows(np.array([[200, 200]], np.int32))
    assert entry[12] == 0b0101_0000
    with pytest.raises(ValueError, match="a row is damaged"):
        unpack_row(entry[:12] + bytes([0b1110_0000]) + entry[13:])
