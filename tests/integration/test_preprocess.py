"""Preprocessing end to end: the rows read by MindSpore decode to the input documents."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tokenizers import Tokenizer

from ascend_cpt.data import pipeline
from ascend_cpt.data.packed.manifest import Manifest, check_shards, load_manifest
from ascend_cpt.data.pipeline import preprocess
from ascend_cpt.data.settings import PreprocessSettings
from ascend_cpt.data.shards.pack import Progress, ShardResult, ShardTask, pack_shard
from ascend_cpt.errors import DataError

REPOSITORY = Path(__file__).resolve().parents[2]
TOOL = REPOSITORY / "tools" / "preprocess_data.py"


def run_tool(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def pack(sample: Path, source: Path, prefix: Path, **settings: Any) -> Manifest:
    """Pack in this process, so that MindSpore is imported only once."""
    defaults = {"seq_length": 64, "tokenizer_path": str(sample / "tokenizer")}
    (manifest,) = preprocess(
        PreprocessSettings(inputs=(str(source),), output_prefix=str(prefix), **defaults | settings)
    )
    return manifest


def read_rows(manifest: Manifest) -> list[npt.NDArray[np.int32]]:
    """Return the rows of each shard, read by MindDataset."""
    from mindspore.dataset import MindDataset

    shards = []
    for shard in manifest.shards:
        dataset = MindDataset(str(manifest.folder / shard.file), shuffle=False)
        rows = [row["input_ids"] for row in dataset.create_dict_iterator(num_epochs=1, output_numpy=True)]
        assert all(row.dtype == np.int32 for row in rows)
        shards.append(np.stack(rows) if rows else np.empty((0, (manifest.seq_length or 0) + 1), np.int32))
    return shards


def decode(manifest: Manifest, tokenizer: Tokenizer) -> list[str]:
    """Return the documents of a dataset, decoded from its rows with the counts in its manifest."""
    documents: list[str] = []
    for shard, rows in zip(manifest.shards, read_rows(manifest), strict=True):
        stream = rows.reshape(-1)
        assert len(rows) == shard.num_rows
        assert (stream[shard.num_tokens :] == manifest.tokenizer.pad_id).all()
        stream = stream[: shard.num_tokens]
        ends = np.flatnonzero(stream == manifest.tokenizer.eod_id)
        assert len(ends) == shard.num_documents
        assert not stream.size or ends[-1] == stream.size - 1
        for begin, end in zip([0, *(ends + 1)], ends, strict=False):
            documents.append(tokenizer.decode(stream[begin:end].tolist(), skip_special_tokens=False))
    return documents


def write_jsonl(path: Path, texts: Sequence[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def make_texts(seed: int, count: int) -> list[str]:
    chooser = random.Random(seed)
    alphabet = "abc  \n\t{}\"'\u00e9\u4f60\U0001f600<|endoftext|>"
    return ["".join(chooser.choices(alphabet, k=chooser.choice([1, 5, 50, 3000]))) for _ in range(count)]


@pytest.mark.parametrize(
    ("seed", "count", "num_shards", "seq_length"), [(1, 40, 1, 7), (2, 40, 3, 64), (3, 3, 12, 16), (4, 12, 10, 1)]
)
def test_rows_decode_to_the_input(
    sample: Path, tmp_path: Path, seed: int, count: int, num_shards: int, seq_length: int
) -> None:
    texts = make_texts(seed, count)
    source = write_jsonl(tmp_path / "in.jsonl", texts)
    manifest = pack(sample, source, tmp_path / "out", num_shards=num_shards, seq_length=seq_length)
    assert decode(manifest, Tokenizer.from_file(str(sample / "tokenizer" / "tokenizer.json"))) == texts
    width = len(str(num_shards - 1))
    assert [shard.file for shard in manifest.shards] == [
        f"out_text_document.mindrecord{k:0{width}d}" for k in range(num_shards)
    ]
    assert (manifest.num_documents, manifest.num_records, manifest.rejected) == (count, count, {})
    assert manifest.text_bytes == sum(len(text.encode()) for text in texts)
    check_shards(manifest, checksums=True)
    left = sorted(path.name for path in tmp_path.iterdir() if "mindrecord" not in path.name)
    assert left == ["in.jsonl", "out_text_document.manifest.json"], "no lock and no work folder stays"


def test_documents_do_not_depend_on_the_number_of_shards(sample: Path, tmp_path: Path) -> None:
    source = sample / "general" / "valid.parquet"
    tokenizer = Tokenizer.from_file(str(sample / "tokenizer" / "tokenizer.json"))
    one = decode(pack(sample, source, tmp_path / "one"), tokenizer)
    assert decode(pack(sample, source, tmp_path / "five", num_shards=5), tokenizer) == one
    assert one == [json.loads(line)["text"] for line in (sample / "general" / "valid.jsonl").read_text().splitlines()]


def test_packing_is_deterministic(sample: Path, tmp_path: Path) -> None:
    source = sample / "general" / "valid.jsonl"
    first = pack(sample, source, tmp_path / "a" / "out", num_shards=3)
    second = pack(sample, source, tmp_path / "b" / "out", num_shards=3, workers=2)
    assert first.digest == second.digest
    for shard in first.shards:
        for name in (shard.file, shard.index_file):
            assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()


def test_mindformers_reads_all_files_of_a_dataset(sample: Path, tmp_path: Path) -> None:
    from mindspore.dataset import MindDataset

    texts = make_texts(5, 3)
    manifest = pack(sample, write_jsonl(tmp_path / "in.jsonl", texts), tmp_path / "out", num_shards=12)
    files = sorted(str(path) for path in tmp_path.glob("*mindrecord*") if not path.name.endswith(".db"))
    dataset = MindDataset(files, shuffle=False)
    rows = [row["input_ids"] for row in dataset.create_dict_iterator(num_epochs=1, output_numpy=True)]
    np.testing.assert_array_equal(np.stack(rows), np.concatenate(read_rows(manifest)))


def test_options_change_the_rows(sample: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", ["hello world", "<|endoftext|>"])
    plain = pack(sample, source, tmp_path / "plain", append_eod=False, seq_length=2)
    assert plain.tokenizer.eod_id not in np.concatenate(read_rows(plain))
    parsed = pack(sample, source, tmp_path / "parsed", parse_special_tokens=True, append_eod=False, seq_length=2)
    assert (np.concatenate(read_rows(parsed)) == parsed.tokenizer.eod_id).sum() == 1
    # Longer than all documents together, for any sample tokenizer.
    dropped = pack(sample, source, tmp_path / "dropped", tail="drop", seq_length=40)
    padded = pack(sample, source, tmp_path / "padded", seq_length=40)
    assert padded.dropped_tokens == 0 and padded.shards[0].tail_tokens > 0
    assert dropped.num_rows == padded.num_rows - 1
    assert dropped.dropped_tokens == padded.shards[0].tail_tokens
    assert dropped.num_tokens + dropped.dropped_tokens == padded.num_tokens


def test_several_keys_give_aligned_datasets(sample: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    rows = [{"a": "one", "b": "eins"}, {"a": "two", "b": None}, {"a": "three", "b": "drei"}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = PreprocessSettings(
        inputs=(str(source),),
        output_prefix=str(tmp_path / "out"),
        tokenizer_path=str(sample / "tokenizer"),
        seq_length=8,
        json_keys=("a", "b"),
        max_bad_fraction=0.5,
    )
    manifests = preprocess(settings)
    tokenizer = Tokenizer.from_file(str(sample / "tokenizer" / "tokenizer.json"))
    assert [decode(manifest, tokenizer) for manifest in manifests] == [["one", "three"], ["eins", "drei"]]
    assert [manifest.key for manifest in manifests] == ["a", "b"]
    assert all(manifest.rejected == {"null": 1} and manifest.num_records == 3 for manifest in manifests)
    assert preprocess(settings) == manifests == [load_manifest(tmp_path / f"out_{key}_document") for key in "ab"]


def test_finished_output_is_reused_and_other_output_refused(sample: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", make_texts(6, 20))
    first = pack(sample, source, tmp_path / "out", num_shards=4)
    files = [tmp_path / shard.file for shard in first.shards]
    times = [path.stat().st_mtime_ns for path in files]
    assert pack(sample, source, tmp_path / "out", num_shards=4, overwrite=True) == first
    assert [path.stat().st_mtime_ns for path in files] == times, "nothing was written"

    for change, message in (
        ({"num_shards": 2}, "num_subs was 4 and is now 2"),
        ({"num_shards": 4, "seq_length": 32}, "seq_length was 64 and is now 32"),
    ):
        with pytest.raises(DataError, match=message):
            pack(sample, source, tmp_path / "out", **change)
    with pytest.raises(DataError, match=r"in\.jsonl is missing"):
        pack(sample, sample / "code" / "valid.jsonl", tmp_path / "out", num_shards=4)
    write_jsonl(source, make_texts(7, 20))
    with pytest.raises(DataError, match=r"in\.jsonl has changed.*--overwrite"):
        pack(sample, source, tmp_path / "out", num_shards=4)

    second = pack(sample, source, tmp_path / "out", num_shards=2, overwrite=True)
    assert decode(second, Tokenizer.from_file(str(sample / "tokenizer" / "tokenizer.json"))) == make_texts(7, 20)
    left = {path.name for path in tmp_path.glob("out*mindrecord*")}
    assert left == {name for shard in second.shards for name in (shard.file, shard.index_file)}, "stale shards are gone"

    files[0].write_bytes(b"cut short")
    with pytest.raises(DataError, match="mindrecord0: 9 bytes"):
        pack(sample, source, tmp_path / "out", num_shards=2)
    assert pack(sample, source, tmp_path / "out", num_shards=2, overwrite=True) == second


def test_interrupted_run_resumes(sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", make_texts(8, 60))
    expected = pack(sample, source, tmp_path / "whole" / "out", num_shards=6)
    done: list[int] = []

    def pack_some(task: ShardTask, report: Callable[[Progress], None]) -> ShardResult:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(task.number)
        return pack_shard(task, report)

    monkeypatch.setattr(pipeline, "pack_shard", pack_some)
    with pytest.raises(KeyboardInterrupt):
        pack(sample, source, tmp_path / "out", num_shards=6)
    assert not list(tmp_path.glob("out_text*")), "nothing is there before all is"
    with pytest.raises(DataError, match=r"left by an interrupted run.*num_subs was 6 and is now 5"):
        pack(sample, source, tmp_path / "out", num_shards=5)
    (tmp_path / "out.work" / "sub-1" / "out_text_document.mindrecord1").write_bytes(b"damaged")

    again: list[int] = []

    def pack_rest(task: ShardTask, report: Callable[[Progress], None]) -> ShardResult:
        again.append(task.number)
        return pack_shard(task, report)

    monkeypatch.setattr(pipeline, "pack_shard", pack_rest)
    assert pack(sample, source, tmp_path / "out", num_shards=6).digest == expected.digest
    assert (done, again) == ([0, 1, 2], [1, 3, 4, 5]), "what was whole is kept"


def test_command_line(sample: Path, tmp_path: Path) -> None:
    arguments = ("--output-prefix", "packed/out", "--tokenizer-name-or-path", sample / "tokenizer", "--seq-length", 128)
    arguments = (*arguments, "--input", sample / "general" / "valid.parquet", "--n-subs", 2, "--workers", 2)
    first = run_tool(*arguments, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    manifest = load_manifest(tmp_path / "packed" / "out_text_document")
    assert manifest.seq_length == 128 and len(manifest.shards) == 2
    assert f"{manifest.num_documents} documents, {manifest.num_tokens} tokens" in first.stdout
    again = run_tool(*arguments, cwd=tmp_path)
    assert again.returncode == 0 and "already complete; reusing it" in again.stderr and again.stdout == first.stdout


def test_help_imports_nothing_heavy() -> None:
    begin_s = time.monotonic()
    result = run_tool("--help")
    assert result.returncode == 0 and "--n-subs" in result.stdout
    assert time.monotonic() - begin_s < 1.0
