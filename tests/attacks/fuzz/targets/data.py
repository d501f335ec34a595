"""Input files of every format, packed data and evaluation tasks."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from ascend_cpt.config.task_schema import TaskConfig
from ascend_cpt.data.packed import mindrecord_writer
from ascend_cpt.data.packed.manifest import check_shards, load_manifest, manifest_path
from ascend_cpt.data.packed.megatron_indexed import IndexedWriter
from ascend_cpt.data.packed.mindrecord_writer import HEADER_BYTES, FormatWriter
from ascend_cpt.data.packed.shard_writers import make_shard
from ascend_cpt.data.packed.token_stream import TokenStream, check_rows
from ascend_cpt.data.packed.verified import verify_once
from ascend_cpt.data.readers import records
from ascend_cpt.data.readers.documents import Tally, extract_documents
from ascend_cpt.data.readers.formats import ReadOptions, load_reader
from ascend_cpt.data.readers.handlers import GeneralPretrainHandler, Handler, WikiTextHandler
from ascend_cpt.data.readers.input_files import find_input_files
from ascend_cpt.data.readers.records import read_records
from ascend_cpt.data.readers.spans import split_input
from ascend_cpt.data.tokenizing.base import Encoded
from ascend_cpt.errors import CptError
from ascend_cpt.tasks.load import load_task
from tests.attacks.fuzz.harness import Prepared, Target
from tests.attacks.fuzz.mutate import Mutate, by_lines, mutate_bytes, mutate_json, one_of, rewrite

MAX_RECORD_BYTES = 2000
RECORDS = [{"text": "The first one.\nTwo lines.", "n": 1}, {"text": "答案 é", "n": 2}, {"text": "x" * 50, "m": [1, {}]}]
JSONL = b"".join(json.dumps(record).encode() + b"\n" for record in RECORDS)
ARRAY = json.dumps(RECORDS, indent=1).encode()
CSV = b'text,n\r\nplain,1\r\n"quoted, ""x""\nnext line",2\r\nlast,3\r\n'
TXT = "First paragraph,\nline two.\n\n = Title = \n\nSecond 答\n \nThird\n".encode()


def read_all(path: Path, options: ReadOptions, handler: Handler) -> None:
    """Read the file in one part and in three, which must give the same records, and extract the documents."""
    (file,) = find_input_files([str(path)])
    extents = load_reader(file.format).measure(file, options)
    parts = [
        [record for span in spans for record in read_records(span, options, handler)]
        for count in (1, 3)
        for spans in [list(chain.from_iterable(split_input([file], [extents], count)))]
    ]
    whole, in_parts = parts
    places = [[(record.position, record.problem) for record in part] for part in parts]
    assert places[0] == places[1], "the records depend on the number of parts"
    assert [record.row for record in whole] == [
        record.row for record in in_parts
    ] or b"nan" in path.read_bytes().lower()
    tally = Tally()
    for record in whole:
        for document in extract_documents(handler, ("text",), file, record, tally, MAX_RECORD_BYTES):
            assert document.texts[0] and document.text_bytes[0] <= MAX_RECORD_BYTES
    tally.check()


def prepare_reader(suffix: str, seeds: list[bytes], mutate: Mutate, **settings: Any) -> Callable[[Path], Prepared]:
    """Return how to prepare the target of a format."""
    handler = WikiTextHandler() if settings.pop("joined", False) else GeneralPretrainHandler()
    options = ReadOptions(columns=settings.pop("columns", None), max_record_bytes=MAX_RECORD_BYTES, **settings)

    def prepare(folder: Path) -> Prepared:
        path = folder / f"x{suffix}"

        def run(case: bytes) -> None:
            path.write_bytes(case)
            # The cursor is kept for the next span of a file, which never changes while it is packed.
            records._last_cursor = None
            read_all(path, options, handler)

        return Prepared(seeds=seeds, mutate=mutate, run=run)

    return prepare


def recompressed(compress: Callable[[bytes], bytes], decompress: Callable[[bytes], bytes], mutate: Mutate) -> Mutate:
    """Return a mutator of the compressed bytes or of the text in them."""

    def mutate_either(random: Random, data: bytes) -> bytes:
        if random.randrange(3):
            return mutate_bytes(random, data)
        try:
            return compress(mutate(random, decompress(data)))
        except Exception:  # already damaged
            return mutate_bytes(random, data)

    return mutate_either


def zst(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def unzst(data: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompress(data, max_output_size=1 << 16)


def gz(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def make_table() -> pa.Table:
    return pa.table(
        {
            "text": pa.array(["a", "答案 é", None, "x" * 40]),
            "list": pa.array([[1], [], None, [2, 3]], pa.list_(pa.int64())),
            "dict": pa.array(["u", "v", "u", None]).dictionary_encode(),
            "struct": pa.array([{"a": 1}] * 4),
        }
    )


def make_parquet(**settings: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(make_table(), sink, **settings)
    return sink.getvalue()


def make_arrow(stream: bool, table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue()


def prepare_indexed(folder: Path) -> Prepared:
    """A case is the index; the data is as the writer made it."""
    writer = IndexedWriter(folder / "x", np.dtype(np.int32))
    writer.write(Encoded(np.arange(40, dtype=np.int32), np.array([0, 10, 25, 40])))
    writer.close()
    seed = (folder / "x.idx").read_bytes()
    options = ReadOptions(columns=None)

    def run(case: bytes) -> None:
        (folder / "x.idx").write_bytes(case)
        (file,) = find_input_files([str(folder / "x.idx")])
        load_reader("indexed").measure(file, options)
        from ascend_cpt.data.packed.megatron_indexed import IndexedReader

        reader = IndexedReader(folder / "x")
        assert len(reader.read(0, len(reader)).ids) == 40

    return Prepared(seeds=[seed], mutate=mutate_bytes, run=run)


def write_dataset(folder: Path, output_format: str) -> Path:
    """Write a packed dataset of 40 ids; return its prefix."""
    from ascend_cpt.data.packed.manifest import Manifest, write_manifest
    from ascend_cpt.data.tokenizing.info import TokenizerInfo

    counts = {"num_rows": 5, "num_tokens": 40, "num_documents": 3, "text_bytes": 100}
    if output_format == "mmap":
        writer = IndexedWriter(folder / "y", np.dtype(np.int32))
        writer.write(Encoded(np.arange(40, dtype=np.int32), np.array([0, 10, 25, 40])))
        writer.close()
        shard = make_shard(folder / "y.bin", folder / "y.idx", **counts)
    else:
        mindrecord_writer.PAGE_BYTES = 120  # instead of 32 MiB
        rows = FormatWriter(folder / "x.mindrecord0")
        rows.write(np.arange(40, dtype=np.int32).reshape(5, 8))
        rows.close()
        shard = make_shard(folder / "x.mindrecord0", folder / "x.mindrecord0.db", **counts)
    tokenizer = TokenizerInfo(type="x", name="x", fingerprint="x", vocab_size=64, eod_id=2, pad_id=1)
    manifest = Manifest(
        key="text", output_format=output_format, seq_length=7 if output_format == "mindrecord" else None,
        tokenizer=tokenizer, shards=(shard,), settings={"a": [1]}, versions={"numpy": "1"}, rejected={"null": 1},
    )  # fmt: skip
    write_manifest(manifest, manifest_path(folder / "x"))
    return folder / "x"


EXCLUDED = (
    "sources", "num_records", "num_filtered", "rejected", "left_out", "settings", "engine", "versions", "totals",
)  # fmt: skip


def complete_manifest(case: bytes) -> bytes:
    """Return a manifest with the digest of its content, as an attacker would write it."""
    try:
        record = json.loads(case)
        content = {name: value for name, value in record.items() if name not in (*EXCLUDED, "digest")}
        content["tokenizer"] = {name: value for name, value in content["tokenizer"].items() if name != "name"}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        return json.dumps(record | {"digest": hashlib.sha256(text).hexdigest()}).encode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return case


def prepare_manifest(folder: Path) -> Prepared:
    both = folder / "both"
    both.mkdir()
    seeds = [manifest_path(write_dataset(both, output_format)).read_bytes() for output_format in ("mindrecord", "mmap")]

    def run(case: bytes) -> None:
        manifest_path(both / "x").write_bytes(case)
        manifest = load_manifest(both / "x")
        check_shards(manifest, checksums=True)
        stream = TokenStream(manifest)
        if 0 < stream.num_tokens < 1_000_000:
            stream.read(stream.num_tokens - 1, 1)

    return Prepared(seeds=seeds, mutate=rewrite(mutate_json, complete_manifest, 0.8), run=run)


def prepare_verified(folder: Path) -> Prepared:
    """The record of the files that are verified: a hostile one must not end in anything but reading them again."""
    prefix = write_dataset(folder, "mindrecord")
    manifest, record = load_manifest(prefix), folder / "record.json"
    total = verify_once(manifest, record)

    def run(case: bytes) -> None:
        record.write_bytes(case)
        assert 0 <= verify_once(manifest, record) <= total

    return Prepared(seeds=[record.read_bytes()], mutate=mutate_json, run=run)


def prepare_mindrecord(folder: Path) -> Prepared:
    """A packed file or its index (SQLite) with its checksum forged; the first byte chooses the file."""
    prefix = write_dataset(folder, "mindrecord")
    data, index = folder / "x.mindrecord0", folder / "x.mindrecord0.db"
    good = {b"d": data.read_bytes()[HEADER_BYTES:], b"i": index.read_bytes()}
    manifest = load_manifest(prefix)

    def run(case: bytes) -> None:
        index.write_bytes(case[1:] if case[:1] == b"i" else good[b"i"])
        with data.open("r+b") as file:  # after the header, which is a hole of 16 MiB
            file.truncate(HEADER_BYTES)
            file.seek(HEADER_BYTES)
            file.write(good[b"d"] if case[:1] == b"i" else case[1:])
        check_rows(folder / "x.mindrecord0", row_length=8)
        assert TokenStream(dataclasses.replace(manifest)).read(3, 20).shape == (20,)

    def mutate(random: Random, case: bytes) -> bytes:
        return case[:1] + mutate_bytes(random, case[1:])

    return Prepared(seeds=[letter + content for letter, content in good.items()], mutate=mutate, run=run)


TASK_ITEMS = {
    "mmlu": [{"question": q, "choices": ["a", "b", "c", "d"], "answer": 1, "subject": "maths"} for q in ("Q", "R")],
    "ceval": [{"question": q, "A": "1", "B": "2", "C": "3", "D": "4", "answer": "B", "subject": "数"} for q in "问题"],
    "hellaswag": [
        {"activity_label": "x", "ctx_a": q, "ctx_b": "b", "endings": ["c", "d [x]"], "label": "1"} for q in ("A.", "B.")
    ],
    "arc": [
        {"question": q, "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"} for q in ("Q", "R")
    ],
    "lambada": [{"text": "He said the word"}, {"text": "And another one"}],
    "plain": [{"query": "q", "choices": ["a", "b"], "gold": 0}, {"query": "", "choices": ["a", "b"], "gold": "b"}],
}


def encode(text: str) -> list[int]:
    return [ord(character) for character in text]


def load_all(path: Path) -> None:
    """Load a task file as both kinds; raise the error if neither can be loaded. The schema is detected."""
    errors: list[CptError] = []
    for kind, few_shot in (("multiple_choice", 1), ("continuation", 0)):
        config = TaskConfig(path=str(path), kind=kind, few_shot=few_shot, few_shot_path=str(path) if few_shot else None)
        try:
            task = load_task("x", config, encode, seq_length=400, prefix_token=2)
            assert task.num_items == len(task.gold) > 0
        except CptError as error:
            errors.append(error)
    if len(errors) == 2:
        raise errors[0]


def prepare_tasks(folder: Path) -> Prepared:
    path = folder / "x.jsonl"

    def run(case: bytes) -> None:
        path.write_bytes(case)
        load_all(path)

    seeds = [b"".join(json.dumps(item).encode() + b"\n" for item in items) for items in TASK_ITEMS.values()]
    return Prepared(seeds=seeds, mutate=by_lines(mutate_json), run=run)


def prepare_task_files(folder: Path) -> Prepared:
    """Compressed and parquet files of items; the first byte chooses the format."""
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(TASK_ITEMS["mmlu"]), sink)
    lines = b"".join(json.dumps(item).encode() + b"\n" for item in TASK_ITEMS["plain"])
    names = {b"g": "x.jsonl.gz", b"p": "x.parquet"}

    def run(case: bytes) -> None:
        path = folder / names.get(case[:1], "x.parquet")
        path.write_bytes(case[1:])
        load_all(path)

    def mutate(random: Random, case: bytes) -> bytes:
        return case[:1] + mutate_bytes(random, case[1:])

    return Prepared(seeds=[b"g" + gz(lines), b"p" + sink.getvalue()], mutate=mutate, run=run)


LINES = by_lines(one_of(mutate_json, mutate_bytes))
_VIEWS = pa.table(
    {
        "text": pa.array(["a", "é" * 20, None], pa.string_view()),
        "b": pa.array([b"x" * 30, b"", b"\xff"], pa.binary_view()),
    }
)
_ARROW = [*(make_arrow(stream, make_table()) for stream in (False, True)), make_arrow(False, _VIEWS)]
_PARQUET = [make_parquet(), make_parquet(compression="zstd", row_group_size=2, data_page_version="2.0")]

TARGETS = (
    Target(name="jsonl", num_cases=5_000, prepare=prepare_reader(".jsonl", [JSONL], LINES)),
    Target(
        name="json_array",
        num_cases=5_000,
        prepare=prepare_reader(".json", [ARRAY, b"[1]", b"{}"], one_of(mutate_json, mutate_bytes)),
    ),
    Target(name="csv", num_cases=5_000, prepare=prepare_reader(".csv", [CSV], mutate_bytes)),
    Target(name="tsv", num_cases=5_000, prepare=prepare_reader(".tsv", [CSV.replace(b",", b"\t")], mutate_bytes)),
    Target(name="txt", num_cases=5_000, prepare=prepare_reader(".txt", [TXT], mutate_bytes)),
    Target(
        name="paragraphs",
        num_cases=5_000,
        prepare=prepare_reader(".txt", [TXT], mutate_bytes, txt_documents="blank-line"),
    ),
    Target(
        name="wikitext",
        num_cases=5_000,
        prepare=prepare_reader(".txt", [TXT], mutate_bytes, joined=True, keep_blank_lines=True),
    ),
    Target(
        name="gz",
        num_cases=5_000,
        prepare=prepare_reader(".jsonl.gz", [gz(JSONL)], recompressed(gz, gzip.decompress, LINES)),
    ),
    Target(
        name="zst",
        num_cases=5_000,
        prepare=prepare_reader(".csv.zst", [zst(CSV)], recompressed(zst, unzst, mutate_bytes)),
    ),
    Target(name="parquet", num_cases=5_000, prepare=prepare_reader(".parquet", _PARQUET, mutate_bytes)),
    Target(name="arrow", num_cases=5_000, prepare=prepare_reader(".arrow", _ARROW, mutate_bytes)),
    Target(name="indexed", num_cases=6_000, prepare=prepare_indexed),
    Target(name="manifest", num_cases=6_000, prepare=prepare_manifest),
    Target(name="verified", num_cases=5_000, prepare=prepare_verified),
    Target(name="mindrecord", num_cases=5_000, prepare=prepare_mindrecord),
    Target(name="tasks", num_cases=8_000, prepare=prepare_tasks),
    Target(name="task_files", num_cases=5_000, prepare=prepare_task_files),
)
