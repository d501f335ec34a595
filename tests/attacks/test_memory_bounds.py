"""Small files that expand to gigabytes: preprocessing ends with its usual outcome and uses less than 1 GB.

The peak is that of the process itself (`ru_maxrss`), which with --workers 1 reads, tokenizes and packs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from ascend_cpt.data.sample import make_sample

TOOL = Path(__file__).resolve().parents[2] / "tools" / "preprocess_data.py"
MAX_PEAK_MB = 1000
MIB = 1 << 20
GOOD = b'{"text": "a good record"}\n'


class Outcome(NamedTuple):
    code: int
    peak_mb: float
    output: str


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    make_sample(folder)
    return folder / "tokenizer"


# A child of a large process inherits its peak, so the tool is the child of a small one.
MEASURE = (
    "import resource, subprocess, sys; code = subprocess.call(sys.argv[2:]);"
    "open(sys.argv[1], 'w').write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)); sys.exit(code)"
)


def run_measured(tokenizer: Path, folder: Path, *arguments: object) -> Outcome:
    """Run the tool and return its exit code, peak resident memory and output."""
    command = [sys.executable, "-c", MEASURE, str(folder / "peak"), sys.executable, str(TOOL)]
    command += ["--output-prefix", str(folder / "out" / "x"), "--seq-length", "16"]
    command += ["--tokenizer-name-or-path", str(tokenizer), "--workers", "1", *map(str, arguments)]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return Outcome(result.returncode, int((folder / "peak").read_text()) / 1024, result.stdout)


def write_zst(path: Path, parts: Iterator[bytes]) -> None:
    """Compress the parts to one frame with a small window."""
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=20)
    with path.open("wb") as file, zstandard.ZstdCompressor(compression_params=parameters).stream_writer(file) as writer:
        for part in parts:
            writer.write(part)


def repeat(head: bytes, unit: bytes, num_bytes: int, tail: bytes) -> Iterator[bytes]:
    """Yield `head`, about `num_bytes` of repeated `unit`, and `tail`."""
    yield head
    block = unit * (MIB // len(unit))
    for _ in range(num_bytes // len(block)):
        yield block
    yield tail


def make_long_line(path: Path) -> list[object]:
    write_zst(path / "a.jsonl.zst", repeat(GOOD + b'{"text": "', b"0", 5000 * MIB, b'"}\n' + GOOD))
    assert (path / "a.jsonl.zst").stat().st_size < 170_000 * 3
    return []


def make_long_element(path: Path) -> list[object]:
    write_zst(path / "a.json.zst", repeat(b'[{"text": "a"}, {"text": "', b"0", 1200 * MIB, b'"}, {"text": "b"}]'))
    return []


def make_many_bad_lines(path: Path) -> list[object]:
    write_zst(path / "a.jsonl.zst", repeat(GOOD, b"x\n", 8 * MIB, GOOD))
    return []


def make_nested_lists(path: Path) -> list[object]:
    write_zst(path / "a.jsonl.zst", repeat(GOOD + b'{"text": "x", "y": [', b"[],", 15 * MIB, b"0]}\n" + GOOD))
    return []


def make_open_quote(path: Path) -> list[object]:
    write_zst(path / "a.csv.zst", repeat(b'text\ngood\n"', b"many words\n", 60 * MIB, b'"\ngood\n'))
    return []


def make_long_paragraph(path: Path) -> list[object]:
    write_zst(path / "a.txt.zst", repeat(b"good\n\n", b"ab\n", 40 * MIB, b"\ngood\n"))
    return ["--txt-documents", "blank-line"]


def make_long_file(path: Path) -> list[object]:
    write_zst(path / "a.txt.zst", repeat(b"", b"0", 1500 * MIB, b""))
    (path / "b.txt").write_text("good")
    return ["--txt-documents", "file"]


def make_long_article(path: Path) -> list[object]:
    write_zst(path / "a.txt.zst", repeat(b" = A = \n good\n = B = \n", b"\n", 30 * MIB, b"x\n = C = \n good\n"))
    return ["--handler-name", "WikiTextHandler"]


def make_dictionary_parquet(path: Path) -> list[object]:
    values = pa.array(["0" * 8 * MIB, "good"])
    column = pa.DictionaryArray.from_arrays(pa.array([1] + [0] * 800, pa.int32()), values)
    pq.write_table(pa.table({"text": column}), path / "a.parquet", compression="zstd")
    assert (path / "a.parquet").stat().st_size < 164_000
    return ["--max-record-bytes", 4 * MIB]


def make_large_page(path: Path) -> list[object]:
    pq.write_table(pa.table({"text": ["good", "0" * 700 * MIB]}), path / "a.parquet", compression="zstd")
    return []


def make_compressed_arrow(path: Path) -> list[object]:
    table = pa.table({"text": ["good", "0" * 700 * MIB]})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.OSFile(str(path / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema, options=options) as to:
        to.write_table(table)
    return []


def make_arrow_of_nothing(path: Path) -> list[object]:
    """A list of 500 million nulls takes no space in the file."""
    column = pa.ListArray.from_arrays(pa.array([0, 1, 500_000_000], pa.int32()), pa.nulls(500_000_000))
    table = pa.table({"text": column, "other": ["a", "b"]})
    with pa.OSFile(str(path / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as to:
        to.write_table(table)
    return []


CASES: list[tuple[Callable[[Path], list[object]], str]] = [
    (make_long_line, "1 of 3 records rejected (1 too_long)"),
    (make_long_element, "1 of 3 records rejected (1 too_long)"),
    (make_nested_lists, "1 of 3 records rejected (1 too_long)"),
    (make_open_quote, "1 of 3 records rejected (1 too_long)"),
    (make_long_file, "1 of 2 records rejected (1 too_long)"),
    (make_dictionary_parquet, "800 of 801 records rejected (800 too_long)"),
    (make_large_page, "a.parquet: cannot be read near row 1: needs more than"),
    (make_compressed_arrow, "a.arrow: cannot be read near row 1: needs more than"),
    (make_arrow_of_nothing, "2 of 2 records rejected (1 too_long, 1 wrong_type)"),
]
# Tens of millions of lines.
SLOW_CASES: list[tuple[Callable[[Path], list[object]], str]] = [
    (make_many_bad_lines, "4194304 of 4194306 records rejected (4194304 malformed)"),
    (make_long_paragraph, "1 of 3 records rejected (1 too_long)"),
    (make_long_article, "1 of 3 records rejected (1 too_long)"),
]
PARAMETERS = [pytest.param(*case, id=case[0].__name__[5:]) for case in CASES]
PARAMETERS += [pytest.param(*case, id=case[0].__name__[5:], marks=pytest.mark.slow) for case in SLOW_CASES]


@pytest.mark.parametrize(("make", "message"), PARAMETERS)
def test_memory_is_bounded(tokenizer: Path, tmp_path: Path, make: Callable[[Path], list[object]], message: str) -> None:
    (tmp_path / "in").mkdir()
    arguments = make(tmp_path / "in")
    sizes = [path.stat().st_size for path in (tmp_path / "in").iterdir()]
    outcome = run_measured(tokenizer, tmp_path, "--input", tmp_path / "in", *arguments)
    print(f"{make.__name__}: {sum(sizes):,} bytes, peak {outcome.peak_mb:.0f} MB")
    assert outcome.code == 2 and "Traceback" not in outcome.output, outcome.output[-2000:]
    assert message in outcome.output.splitlines()[-1]
    assert outcome.peak_mb < MAX_PEAK_MB


@pytest.mark.parametrize("text", ["0" * 4, "😀"], ids=["one word", "four tokens a character"])
def test_a_record_of_the_greatest_length_is_packed(tokenizer: Path, tmp_path: Path, text: str) -> None:
    """Long words take the most memory in gigatoken, and many tokens in packing."""
    content = json.dumps({"text": text * (4 * MIB - 100)}, ensure_ascii=False)
    (tmp_path / "a.jsonl").write_text(content + "\n", encoding="utf-8")
    outcome = run_measured(tokenizer, tmp_path, "--input", tmp_path / "a.jsonl")
    print(f"peak {outcome.peak_mb:.0f} MB")
    assert outcome.code == 0, outcome.output[-2000:]
    assert outcome.peak_mb < MAX_PEAK_MB
