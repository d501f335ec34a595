"""Readers: all splits of a file give the same records, and bad records do not affect others."""

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
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ascend_cpt.data.readers.formats import ReadOptions, Record, byte_stream, load_reader, txt_file
from ascend_cpt.data.readers.handlers import GeneralPretrainHandler, Handler, WikiTextHandler
from ascend_cpt.data.readers.input_files import InputFile, find_input_files
from ascend_cpt.data.readers.records import read_records
from ascend_cpt.data.readers.spans import Span
from ascend_cpt.errors import DataError

OPTIONS = ReadOptions(columns=("text",))
# No carriage returns and surrogates: csv and txt change the former, no file holds the latter.
TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r\x00"), min_size=1, max_size=40)


def write_jsonl(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=len(text) % 2 == 0) + "\n" for text in texts))


def write_array(path: Path, texts: list[str]) -> None:
    rows = [{"n": {"[": k}, "text": text} for k, text in enumerate(texts)]
    path.write_text(json.dumps(rows, indent=len(texts) % 3 or None, ensure_ascii=False))


def write_csv(path: Path, texts: list[str]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([["n", "text"], *([k, text] for k, text in enumerate(texts))])


def write_tsv(path: Path, texts: list[str]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, "excel-tab", lineterminator="\n").writerows([["text"], *([text] for text in texts)])


def compress(write: Callable[[Path, list[str]], None]) -> Callable[[Path, list[str]], None]:
    """Write and compress as two consecutive members or frames."""

    def write_compressed(path: Path, texts: list[str]) -> None:
        write(path, texts)
        content = path.read_bytes()
        zip_part = gzip.compress if path.suffix == ".gz" else zstandard.compress
        path.write_bytes(zip_part(content[: len(content) // 3]) + zip_part(content[len(content) // 3 :]))

    return write_compressed


def write_parquet(path: Path, texts: list[str]) -> None:
    pq.write_table(pa.table({"n": range(len(texts)), "text": pa.array(texts, pa.string())}), path, row_group_size=3)


def write_arrow_stream(path: Path, texts: list[str]) -> None:
    table = pa.table({"text": pa.array(texts, pa.large_string())})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)


def write_feather(path: Path, texts: list[str]) -> None:
    feather.write_feather(pa.table({"text": texts}), path, chunksize=4, compression="lz4")


WRITERS: dict[str, tuple[str, Callable[[Path, list[str]], None]]] = {
    "jsonl": ("a.jsonl", write_jsonl),
    "array": ("a.json", write_array),
    "csv": ("a.csv", write_csv),
    "tsv": ("a.tsv", write_tsv),
    "jsonl.gz": ("a.JSONL.gz", compress(write_jsonl)),
    "json.zst": ("a.json.zst", compress(write_array)),
    "csv.zst": ("a.csv.zst", compress(write_csv)),
    "parquet": ("a.parquet", write_parquet),
    "arrow stream": ("a.arrow", write_arrow_stream),
    "arrow file": ("a.feather", write_feather),
}


def describe(path: Path) -> InputFile:
    (file,) = find_input_files([str(path)])
    return file


def read_from(file: InputFile, start: int = 0, options: ReadOptions = OPTIONS) -> list[Record]:
    return list(load_reader(file.format).read(file, start, options))


def num_positions(file: InputFile) -> int:
    return sum(extent.num_positions for extent in load_reader(file.format).measure(file, OPTIONS))


def read_in_parts(
    file: InputFile, cuts: list[int], options: ReadOptions = OPTIONS, handler: Handler | None = None
) -> list[Record]:
    """Read the parts between the cuts, some out of order, as with several workers."""
    bounds = [0, *sorted(cuts), num_positions(file)]
    spans = [Span(file=file, start=a, stop=b, weight=1) for a, b in itertools.pairwise(bounds)]
    parts: dict[int, list[Record]] = {}
    for k in [*range(0, len(spans), 2), *range(1, len(spans), 2)]:
        parts[k] = list(read_records(spans[k], options, handler or GeneralPretrainHandler()))
    return [record for k in range(len(spans)) for record in parts[k]]


def content(records: list[Record]) -> list[object]:
    return [record.problem or (record.row or {}).get("text") for record in records]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_stream, "BLOCK_BYTES", 7)
    monkeypatch.setattr(byte_stream, "_FEED_BYTES", 5)
    monkeypatch.setattr(txt_file, "_LOOK_BACK_BYTES", 2)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("format_name", WRITERS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(texts=st.lists(TEXT, min_size=1, max_size=12), seed=st.integers(0, 2**32))
def test_parts_add_up_to_the_whole(
    format_name: str, tmp_path_factory: pytest.TempPathFactory, texts: list[str], seed: int
) -> None:
    name, write = WRITERS[format_name]
    path = tmp_path_factory.mktemp("part") / name
    write(path, texts)
    file = describe(path)
    assert content(read_from(file)) == texts
    chooser = random.Random(seed)
    cuts = [chooser.randint(0, num_positions(file)) for _ in range(chooser.randint(0, 5))]
    parts = read_in_parts(file, cuts)
    assert content(parts) == texts
    assert [record.position for record in parts] == [record.position for record in read_from(file)]
    assert all(record.line in (None, whole.line) for record, whole in zip(parts, read_from(file), strict=True))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("documents", ["line", "blank-line", "file"])
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    lines=st.lists(st.sampled_from(["", " ", "a", "b\u00e9", "long line of text", "\t      "]), max_size=14),
    ending=st.sampled_from(["\n", "\r\n"]),
    seed=st.integers(0, 2**32),
)
def test_text_parts_add_up_to_the_whole(
    documents: str,
    compression: str,
    tmp_path_factory: pytest.TempPathFactory,
    lines: list[str],
    ending: str,
    seed: int,
) -> None:
    path = tmp_path_factory.mktemp("text") / f"a.txt{compression}"
    content_bytes = ending.join(lines).encode()
    zips: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}
    path.write_bytes(zips[compression](content_bytes))
    file = describe(path)
    expected: list[str] = []
    if documents == "line":
        expected = [line for line in lines if line.strip()]
    elif documents == "file":
        expected = [ending.join(lines)] if content_bytes else []
    else:
        before_is_blank = True
        for line in lines:
            if line.strip():
                expected = [*expected, line] if before_is_blank else [*expected[:-1], expected[-1] + "\n" + line]
            before_is_blank = not line.strip()
    options = ReadOptions(columns=("text",), txt_documents=documents)
    assert content(read_from(file, 0, options)) == expected
    chooser = random.Random(seed)
    cuts = [chooser.randint(0, file.size_bytes) for _ in range(chooser.randint(0, 5))]
    assert content(read_in_parts(file, cuts, options)) == expected


def test_bad_lines_are_bad_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"text": "first"}\n'
        b"{broken\n"
        b"\n"
        b'{"text": "\xff"}\n'
        b"[1]\n"
        b'{"text": "ok", "score": NaN}\r\n'
        b'{"text": "a"} {"text": "b"}\n'
        b'{"text": "no line end"}'
    )
    records = read_from(describe(path))
    assert content(records) == ["first", "malformed", "invalid_utf8", "malformed", "ok", "malformed", "no line end"]
    assert [record.line for record in records] == [1, 2, 4, 5, 6, 7, 8]


def test_bad_elements_of_an_array(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'[\n {"text": "a]}\\"\\\\"},\n {broken}, 3,\n {"text": "\xff"},\n\n {"text": "b"}\n]\n')
    records = read_from(describe(path))
    assert content(records) == ['a]}"\\', "malformed", "malformed", "invalid_utf8", "b"]
    assert [record.line for record in records] == [2, 3, 3, 4, 6]


@pytest.mark.parametrize("rest", ['[{"text": "b"}]', "x", "]"])
def test_text_after_an_array_is_refused(tmp_path: Path, rest: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(f'[{{"text": "a"}}]\n\n{rest}')
    with pytest.raises(DataError, match=r"a\.json:3: text after the end"):
        read_from(describe(path))


def test_an_array_cut_short_ends_with_a_bad_record(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"text": "a"}, {"text": "b')
    assert content(read_from(describe(path))) == ["a", "malformed"]
    path.write_text("[]")
    assert read_from(describe(path)) == []


def test_bad_csv_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'n,text\n1,"two\nlines"\n2\n3,"a"b\n4,\xff\n5,"say ""hi"", ok"\n\n6,"open\nto the end\n')
    records = read_from(describe(path))
    assert content(records) == [
        "two\nlines",
        "malformed",
        "malformed",
        "invalid_utf8",
        'say "hi", ok',
        "malformed",
    ]
    assert [record.line for record in records] == [2, 4, 5, 6, 7, 9]


@pytest.mark.parametrize("format_name", ["parquet", "arrow"])
def test_invalid_utf8_in_a_column_spoils_one_row(tmp_path: Path, format_name: str) -> None:
    column = pa.array([b"a", b"\xff\xfe", b"c"], pa.binary()).view(pa.string())
    path = tmp_path / f"a.{format_name}"
    if format_name == "parquet":
        pq.write_table(pa.table({"text": column}), path)
    else:
        feather.write_feather(pa.table({"text": column}), path)
    assert content(read_from(describe(path))) == ["a", "invalid_utf8", "c"]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_missing_column_names_those_there_are(tmp_path: Path, name: str) -> None:
    table = pa.table({"content": ["x"], "url": ["y"]})
    if name == "a.parquet":
        pq.write_table(table, tmp_path / name)
    else:
        feather.write_feather(table, tmp_path / name)
    with pytest.raises(DataError, match="no column 'text'; its columns are: content, url"):
        read_from(describe(tmp_path / name))


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_files_of_another_format_or_cut_short(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"not what it says")
    with pytest.raises(DataError, match=f"not a readable {name[2:]} file"):
        num_positions(describe(path))
    writer = write_parquet if name == "a.parquet" else write_arrow_stream
    writer(path, ["text " * 100] * 50)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match=name):
        num_positions(describe(path))
    with pytest.raises(DataError, match=name):
        read_from(describe(path))


def test_only_asked_columns_are_read_unless_all_are(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", ["x"])
    file = describe(tmp_path / "a.parquet")
    assert read_from(file)[0].row == {"text": "x"}
    assert read_from(file, 0, ReadOptions(columns=None))[0].row == {"n": 0, "text": "x"}


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_damaged_compressed_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    compress(write_jsonl)(path, [f"text {k}" for k in range(100)])
    whole = path.read_bytes()
    assert len(read_from(describe(path))) == 100
    path.write_bytes(whole + bytes(40))
    if name.endswith("gz"):
        assert len(read_from(describe(path))) == 100, "gzip files may be padded with zeros"
    path.write_bytes(whole[:-9])
    with pytest.raises(DataError, match="truncated"):
        read_from(describe(path))
    path.write_bytes(b"text, not compressed")
    with pytest.raises(DataError, match="cannot be decompressed"):
        read_from(describe(path))


WIKI_LINES = st.lists(
    st.sampled_from(
        [" ", " = Title = ", " = = Section = = ", " = E = mc2 = ", " = X = ", "Text .", " = = = Shard = = = "]
    ),
    max_size=14,
)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("format_name", ["txt", "txt.gz", "parquet"])
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(lines=WIKI_LINES, seed=st.integers(0, 2**32))
@example(lines=[" = = Section = = ", " = Title = "], seed=7632895)  # cuts at 0: an empty part before the first title
def test_wikitext_articles(
    format_name: str, tmp_path_factory: pytest.TempPathFactory, lines: list[str], seed: int
) -> None:
    expected: list[str] = []
    for line in lines:
        if line in (" = Title = ", " = E = mc2 = ", " = X = ") or not expected:
            expected.append(line)
        else:
            expected[-1] += "\n" + line
    expected = [article.rstrip() for article in expected if article.strip()]
    path = tmp_path_factory.mktemp("wiki") / f"a.{format_name}"
    if format_name == "parquet":
        write_parquet(path, [line + "\n" for line in lines])
    else:
        content_bytes = "".join(line + "\n" for line in lines).encode()
        path.write_bytes(gzip.compress(content_bytes) if format_name == "txt.gz" else content_bytes)
    file = describe(path)
    options = ReadOptions(columns=("text",), keep_blank_lines=True)
    assert content(read_in_parts(file, [], options, WikiTextHandler())) == expected
    chooser = random.Random(seed)
    cuts = [chooser.randint(0, num_positions(file)) for _ in range(chooser.randint(0, 5))]
    assert content(read_in_parts(file, cuts, options, WikiTextHandler())) == expected


def test_bad_records_inside_articles_are_met_once(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b" = A = \n\xff\none\n\xff\n = B = \n\xff\ntwo\n")
    file = describe(path)
    options = ReadOptions(columns=("text",), keep_blank_lines=True)
    for cut in range(file.size_bytes + 1):
        records = content(read_in_parts(file, [cut], options, WikiTextHandler()))
        assert sorted(map(str, records)) == [
            " = A = \none",
            " = B = \ntwo",
            "invalid_utf8",
            "invalid_utf8",
            "invalid_utf8",
        ]


def test_an_article_with_a_line_that_is_no_text_is_rejected(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [" = A = ", None, "x", " = B = "]}), tmp_path / "a.parquet")
    records = read_in_parts(describe(tmp_path / "a.parquet"), [], OPTIONS, WikiTextHandler())
    assert content(records) == [None, " = B ="]


def test_wikitext_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of several read blocks, formatted like WikiText: titles, nested headings, blank lines."""
    generator = random.Random(7)
    expected = []
    for number in range(60):
        lines = [f" = Article {number} = ", " "]
        for level in range(1, generator.randint(2, 4)):
            marks = " ".join("=" * (level + 1))
            lines += [f" {marks} Section {marks} ", " ", " word @-@ word ," * generator.randint(100, 600) + " end . "]
        expected.append("\n".join(lines))
    path = tmp_path / "valid.txt"
    path.write_text(" \n" + "\n \n".join(expected) + "\n", encoding="utf-8")
    file = describe(path)
    monkeypatch.setattr(byte_stream, "BLOCK_BYTES", 1 << 16)
    assert file.size_bytes > 10 * byte_stream.BLOCK_BYTES
    options = ReadOptions(columns=("text",), keep_blank_lines=True)
    articles = [article.rstrip() for article in expected]
    assert content(read_in_parts(file, [], options, WikiTextHandler())) == articles
    for cuts in ([5, 99_999, 400_000, 400_001], list(range(0, file.size_bytes, 77_777))):
        assert content(read_in_parts(file, cuts, options, WikiTextHandler())) == articles
