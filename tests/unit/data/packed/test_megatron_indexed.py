"""Megatron indexed datasets: file format, round trip and damaged files."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ascend_cpt.data.packed.megatron_indexed import (
    IndexedReader,
    IndexedWriter,
    choose_dtype,
    iter_documents,
    join_parts,
)
from ascend_cpt.data.tokenizing.base import Encoded, join_encoded
from ascend_cpt.errors import DataError

DOCUMENTS = [[1, 2, 3], [], [4], [65000, 6]]


def write(prefix: Path, documents: list[list[int]], vocab_size: int = 65499) -> Path:
    writer = IndexedWriter(prefix, choose_dtype(vocab_size))
    writer.write(join_encoded(documents[:2]))
    writer.write(join_encoded(documents[2:]))
    writer.close()
    return prefix


def read_all(prefix: Path) -> list[list[int]]:
    reader = IndexedReader(prefix)
    encoded = reader.read(0, len(reader))
    assert encoded.ids.dtype == np.int32
    return [encoded.ids[a:b].tolist() for a, b in zip(encoded.offsets, encoded.offsets[1:], strict=False)]


def test_file_format(tmp_path: Path) -> None:
    write(tmp_path / "x", DOCUMENTS)
    assert (tmp_path / "x.bin").read_bytes() == np.array([1, 2, 3, 4, 65000, 6], "<u2").tobytes()
    expected = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, 4, 5)
    expected += struct.pack("<4i", 3, 0, 1, 2) + struct.pack("<4q", 0, 6, 6, 8) + struct.pack("<5q", 0, 1, 2, 3, 4)
    assert (tmp_path / "x.idx").read_bytes() == expected


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65499, np.uint16), (65500, np.int32), (151_936, np.int32)])
def test_dtype_depends_on_the_vocabulary_size(tmp_path: Path, vocab_size: int, dtype: type) -> None:
    write(tmp_path / "x", DOCUMENTS, vocab_size)
    assert IndexedReader(tmp_path / "x").dtype == dtype
    assert read_all(tmp_path / "x") == DOCUMENTS


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(0, 70_000), max_size=9), max_size=12),
    cuts=st.lists(st.integers(0, 12), max_size=3),
    batch_tokens=st.integers(1, 30),
)
def test_parts_and_batches_give_all_documents(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], cuts: list[int], batch_tokens: int
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    bounds = [0, *sorted(min(cut, len(documents)) for cut in cuts), len(documents)]
    parts = [write(folder / f"part{k}", documents[a:b], 10**6) for k, (a, b) in enumerate(itertools.pairwise(bounds))]
    join_parts(parts, folder / "joined")
    assert read_all(folder / "joined") == documents
    reader = IndexedReader(folder / "joined")
    got: list[list[int]] = []
    for position, batch in iter_documents(reader, 0, len(reader), batch_tokens):
        got += [batch.ids[a:b].tolist() for a, b in zip(batch.offsets, batch.offsets[1:], strict=False)]
        assert len(got) == position
        assert batch.offsets.size == 2 or batch.ids.size <= batch_tokens
    assert got == documents


def test_documents_of_several_sequences(tmp_path: Path) -> None:
    write(tmp_path / "x", DOCUMENTS)
    index = bytearray((tmp_path / "x.idx").read_bytes()[: -5 * 8])
    index[26:34] = struct.pack("<Q", 3)
    (tmp_path / "x.idx").write_bytes(bytes(index) + struct.pack("<3q", 0, 3, 4))
    assert read_all(tmp_path / "x") == [[1, 2, 3, 4], [65000, 6]]


def test_damaged_files(tmp_path: Path) -> None:
    write(tmp_path / "x", DOCUMENTS)
    index, data = (tmp_path / "x.idx").read_bytes(), (tmp_path / "x.bin").read_bytes()
    for new_index, new_data, message in (
        (index[:-1], data, "truncated"),
        (b"XX" + index[2:], data, "not the index"),
        (index[:20], data, "no readable"),
        (b"", data, "no readable"),
        (index, data[:-2], "x.bin: does not match"),
        (index, data + b"xx", "x.bin: does not match"),
    ):
        (tmp_path / "x.idx").write_bytes(new_index)
        (tmp_path / "x.bin").write_bytes(new_data)
        with pytest.raises(DataError, match=message):
            IndexedReader(tmp_path / "x")
    with pytest.raises(DataError, match="no readable"):
        IndexedReader(tmp_path / "missing")


def test_a_damaged_index_is_refused(tmp_path: Path) -> None:
    """A document boundary outside the file, or out of order, gives wrong documents or an IndexError when it is used."""
    writer = IndexedWriter(tmp_path / "x", np.dtype(np.uint16))
    writer.write(Encoded(np.arange(10, dtype=np.int32), np.array([0, 4, 7, 10])))
    writer.close()
    index = tmp_path / "x.idx"
    content = index.read_bytes()
    for boundaries in ([0, 1, 2, 99], [0, 2, 1, 3], [1, 1, 2, 3], [0, 1, 2, 2], [-4, 1, 2, 3]):
        index.write_bytes(content[:-32] + np.array(boundaries, "<i8").tobytes())
        with pytest.raises(DataError, match="x.idx: has impossible lengths or document boundaries; copy it again"):
            IndexedReader(tmp_path / "x")


@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_damaged_index_gives_a_traceback(tmp_path: Path, at: int, damage: bytes) -> None:
    writer = IndexedWriter(tmp_path / "x", np.dtype(np.uint16))
    writer.write(Encoded(np.arange(10, dtype=np.int32), np.array([0, 4, 7, 10])))
    writer.close()
    index = tmp_path / "x.idx"
    content = bytearray(index.read_bytes())
    begin = at % len(content)
    content[begin : begin + len(damage)] = damage
    index.write_bytes(content)
    try:
        reader = IndexedReader(tmp_path / "x")
        reader.read(0, len(reader))
    except DataError as error:
        assert "\n" not in str(error)
