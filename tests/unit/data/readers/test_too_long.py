"""Records above the limit are skipped with bounded memory, and the others are as without it."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ascend_cpt.data.readers.formats import ReadOptions, Record, byte_stream, json_file, load_reader
from ascend_cpt.data.readers.formats.value_sizes import measure_values
from ascend_cpt.data.readers.handlers import GeneralPretrainHandler, WikiTextHandler
from ascend_cpt.data.readers.input_files import find_input_files
from ascend_cpt.data.readers.records import read_records
from ascend_cpt.data.readers.spans import Span
from ascend_cpt.errors import DataError

LIMIT = 40
"""Longest record in bytes; the texts below are clearly shorter or longer, whatever the format adds to them."""
TEXTS = st.lists(
    st.one_of(
        st.text(st.sampled_from('ab é"\\,[]{}'), min_size=1, max_size=4),
        st.text(st.sampled_from('ab é"\\,[]{}'), min_size=60, max_size=90),
    ).filter(lambda text: bool(text.strip())),
    min_size=1,
    max_size=10,
)


def write_lines(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))


def write_array(path: Path, texts: list[str]) -> None:
    path.write_text(json.dumps([{"text": text} for text in texts], ensure_ascii=False, indent=len(texts) % 2 or None))


def write_csv(path: Path, texts: list[str]) -> None:
    """Texts with quotes; blanks become line ends, so that rows extend over lines."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerows([["text"], *([text.replace(" ", "\n")] for text in texts)])


def write_text(path: Path, texts: list[str]) -> None:
    path.write_text("".join(text + "\n" for text in texts))


def write_paragraphs(path: Path, texts: list[str]) -> None:
    path.write_text("".join(text.replace("a", "\nx").strip() + "\n\n" for text in texts))


def write_parquet(path: Path, texts: list[str]) -> None:
    pq.write_table(pa.table({"text": texts}), path, row_group_size=3)


def write_dictionary(path: Path, texts: list[str]) -> None:
    feather.write_feather(pa.table({"text": pa.array(texts).dictionary_encode()}), path, compression="lz4")


def compress(write: Callable[[Path, list[str]], None]) -> Callable[[Path, list[str]], None]:
    def write_compressed(path: Path, texts: list[str]) -> None:
        write(path, texts)
        path.write_bytes((gzip.compress if path.suffix == ".gz" else zstandard.compress)(path.read_bytes()))

    return write_compressed


WRITERS: dict[str, tuple[str, Callable[[Path, list[str]], None], str]] = {
    "lines": ("a.jsonl", write_lines, "line"),
    "array": ("a.json", write_array, "line"),
    "csv": ("a.csv", write_csv, "line"),
    "text": ("a.txt", write_text, "line"),
    "paragraphs": ("a.txt", write_paragraphs, "blank-line"),
    "parquet": ("a.parquet", write_parquet, "line"),
    "dictionary": ("a.arrow", write_dictionary, "line"),
    "lines.zst": ("a.jsonl.zst", compress(write_lines), "line"),
    "array.gz": ("a.json.gz", compress(write_array), "line"),
    "csv.zst": ("a.csv.zst", compress(write_csv), "line"),
}


def read_parts(path: Path, options: ReadOptions, cuts: list[float]) -> list[Record]:
    (file,) = find_input_files([str(path)])
    extents = load_reader(file.format).measure(file, options)
    num_positions = sum(extent.num_positions for extent in extents)
    bounds = [0, *sorted(int(cut * num_positions) for cut in cuts), num_positions]
    spans = [Span(file=file, start=a, stop=b, weight=1) for a, b in itertools.pairwise(bounds)]
    return [record for span in spans for record in read_records(span, options, GeneralPretrainHandler())]


@pytest.mark.parametrize("format_name", WRITERS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(texts=TEXTS, block_bytes=st.integers(1, 200), seed=st.integers(0, 2**32))
def test_long_records_are_left_out(
    format_name: str,
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[str],
    block_bytes: int,
    seed: int,
) -> None:
    name, write, documents = WRITERS[format_name]
    path = tmp_path_factory.mktemp("long") / name
    write(path, texts)
    chooser = random.Random(seed)
    cuts = [chooser.random() for _ in range(chooser.randint(0, 4))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(byte_stream, "BLOCK_BYTES", block_bytes)
        patch.setattr(byte_stream, "_FEED_BYTES", block_bytes)
        patch.setattr(byte_stream, "_ZSTD_FEED_BYTES", max(1, block_bytes // 3))
        patch.setattr(byte_stream, "_KEPT_CHUNKS", 2)
        whole = read_parts(path, ReadOptions(columns=("text",), txt_documents=documents), cuts)
        limited = read_parts(
            path, ReadOptions(columns=("text",), txt_documents=documents, max_record_bytes=LIMIT), cuts
        )
    assert len(whole) == len(texts) and not any(record.problem for record in whole)
    expected = [
        record if len(text) < 50 else Record(record.position, record.line, None, "too_long")
        for record, text in zip(whole, texts, strict=True)
    ]
    assert limited == expected


def test_a_whole_file_and_an_article(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 40)
    (tmp_path / "b.txt").write_text("x" * 41)
    options = ReadOptions(columns=("text",), txt_documents="file", max_record_bytes=40)
    assert read_parts(tmp_path / "a.txt", options, []) == [Record(0, 1, {"text": "x" * 40})]
    assert read_parts(tmp_path / "b.txt", options, []) == [Record(0, 1, None, "too_long")]
    (tmp_path / "c.txt").write_text(" = A = \none\n = B = \n" + "\n" * 60 + " = C = \ntwo\n")
    (file,) = find_input_files([str(tmp_path / "c.txt")])
    span = Span(file=file, start=0, stop=file.size_bytes, weight=1)
    options = ReadOptions(columns=("text",), keep_blank_lines=True, max_record_bytes=40)
    records = list(read_records(span, options, WikiTextHandler()))
    assert [record.problem or record.row for record in records] == [
        {"text": " = A = \none"},
        "too_long",
        {"text": " = C = \ntwo"},
    ]


def test_an_open_quote_spoils_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text\n"' + "many words\n" * 9 + '"\ngood\n"' + "to the end\n" * 9)
    records = read_parts(tmp_path / "a.csv", ReadOptions(columns=None, max_record_bytes=40), [])
    assert [(record.line, record.problem) for record in records] == [(2, "too_long"), (12, ""), (13, "too_long")]
    (tmp_path / "a.csv").write_text("a," * 50 + "\n")
    with pytest.raises(DataError, match=r"a\.csv:1: the header line is longer than --max-record-bytes"):
        read_parts(tmp_path / "a.csv", ReadOptions(columns=None, max_record_bytes=40), [])


@pytest.mark.parametrize(
    ("content", "is_too_much"),
    [
        (b'{"a": [' + b"[]," * 2000 + b"0]}", True),
        (b'{"a": "' + b"[],{}" * 2000 + b'"}', False),
        (b'{"a": "' + rb"\"[],{}\n" * 9000 + b'", "b": [' + b"1," * 2000 + b"0]}", True),
        (b'{"a": "' + rb"\"[],{}\n" * 9000, False),
    ],
)
def test_many_values_in_a_record(monkeypatch: pytest.MonkeyPatch, content: bytes, is_too_much: bool) -> None:
    """Brackets and commas in strings do not count."""
    monkeypatch.setattr(json_file, "_MAX_VALUES_BYTES", 100_000)
    assert json_file._has_too_many_values(content) == is_too_much


@pytest.mark.parametrize(
    ("array", "least", "most"),
    [
        (pa.array(["a" * 100, None, "b" * 50]).slice(0, 2), 90, 120),
        (pa.array([b"a" * 100], pa.large_binary()), 100, 110),
        (pa.array(["a" * 100, "b"]).dictionary_encode(), 200, 300),
        (pa.array(["a" * 100, "b"]).dictionary_encode().slice(1), 1, 10),
        (pa.array(["a" * 100], pa.string_view()), 100, 100),
        (pa.array([[None] * 1000]), 64_000, 130_000),
        (pa.array([{"a": ["b" * 1000]}]), 1000, 2000),
        (pa.array([[("k", "v" * 500)]], pa.map_(pa.string(), pa.string())), 500, 1500),
        (pa.RunEndEncodedArray.from_arrays([9, 10], ["a" * 100, "b"]), 1000, 2000),
        (pa.RunEndEncodedArray.from_arrays([9, 10], ["a" * 100, "b"]).slice(9), 1, 100),
        (pa.array([1, 2, 3]), 24, 300),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else None,
)
def test_sizes_of_arrow_values(array: pa.Array, least: int, most: int) -> None:
    assert least <= measure_values(array).num_bytes <= most


def test_damaged_offsets_are_refused(tmp_path: Path) -> None:
    """Without a check, values with these offsets are read from elsewhere in memory."""
    offsets = pa.py_buffer(b"".join(offset.to_bytes(4, "little") for offset in (0, 1 << 30, 3)))
    column = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"abc")])
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink:
        with pa.ipc.new_stream(sink, pa.schema({"text": pa.string()})) as writer:
            writer.write_batch(pa.RecordBatch.from_arrays([column], ["text"]))
    with pytest.raises(DataError, match=r"a\.arrow: a record batch is damaged"):
        read_parts(tmp_path / "a.arrow", ReadOptions(columns=("text",)), [])
