"""tools/inspect_data.py: output, verification and conversion."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ascend_cpt.data.inspection import compute_statistics, iter_shard_documents, verify
from ascend_cpt.data.packed.manifest import Manifest, load_manifest
from ascend_cpt.data.packed.mindrecord import MindRecordWriter
from ascend_cpt.data.packed.shard_writers import make_shard
from ascend_cpt.data.pipeline import preprocess
from ascend_cpt.data.settings import PreprocessSettings
from ascend_cpt.errors import DataError

TOOL = Path(__file__).resolve().parents[2] / "tools" / "inspect_data.py"
TEXTS = ["one", "two words", "x " * 500, "four"]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, sample: Path) -> Path:
    """A folder with the sample tokenizer and TEXTS packed as `rows` (MindRecord) and `whole` (mmap)."""
    folder = tmp_path_factory.mktemp("inspect")
    (folder / "sample").symlink_to(sample)
    (folder / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    for name, output_format in (("rows", "mindrecord"), ("whole", "mmap")):
        preprocess(
            PreprocessSettings(
                inputs=(str(folder / "in.jsonl"),),
                output_prefix=str(folder / name),
                output_format=output_format,
                seq_length=16,
                num_shards=2,
                tokenizer_path=str(folder / "sample" / "tokenizer"),
            )
        )
    return folder


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["rows_text_document", "whole_text_document"])
def test_documents_and_statistics(packed: Path, name: str) -> None:
    manifest = load_manifest(packed / name)
    verify(manifest)
    documents = [ids for shard in manifest.shards for ids in iter_shard_documents(manifest, shard)]
    statistics = compute_statistics(manifest)
    assert statistics.lengths.tolist() == [ids.size for ids in documents]
    assert len(documents) == 4 and all(ids[-1] == manifest.tokenizer.eod_id for ids in documents)
    np.testing.assert_array_equal(statistics.token_counts, np.bincount(np.concatenate(documents), minlength=4096))
    assert sum(count for _, count in statistics.length_bins) == 4
    assert all(low <= size < 2 * low for low, _ in statistics.length_bins[:1] for size in [min(statistics.lengths)])


def test_all_options_together(packed: Path, tmp_path: Path) -> None:
    tokenizer = packed / "sample" / "tokenizer"
    picture = tmp_path / "new" / "a.png"
    arguments = ("--verify", "--histogram", "--png", picture, "--samples", 2, "--tokenizer", tokenizer)
    result = run(packed / "rows_text_document", *arguments)
    assert result.returncode == 0, result.stderr
    for part in ("4 documents", "rejected: none", "verified: all files", "tokens in document", "--- document 1: "):
        assert part in result.stdout, result.stdout
    assert "\ntwo words<|endoftext|>\n" in result.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


def rewrite(manifest: Manifest, folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> Manifest:
    """Return a copy of the first shard with changed rows and correct checksums."""
    from ascend_cpt.data.packed.mindrecord import iter_rows

    shard = manifest.shards[0]
    rows = np.concatenate(list(iter_rows(manifest.folder / shard.file))).copy()
    writer = MindRecordWriter(folder / shard.file)
    writer.write(np.ascontiguousarray(change(rows)))
    writer.close()
    counts = ("num_rows", "num_tokens", "num_documents", "text_bytes", "tail_tokens")
    new = make_shard(
        folder / shard.file, folder / shard.index_file, **{count: getattr(shard, count) for count in counts}
    )
    return dataclasses.replace(manifest, shards=(new,), path=folder / "x.manifest.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], "rows, but its manifest lists"),
        (lambda rows: rows[:, :-1], r"rows have shape \(16,\) and dtype int32, expected \(17,\)"),
        (lambda rows: np.where(rows == rows[0, 0], 9999, rows).astype(np.int32), "outside the vocabulary"),
        (lambda rows: np.where(rows == 4095, 7, rows).astype(np.int32), "last row is not padded"),
        (lambda rows: np.where(rows == 4094, 7, rows).astype(np.int32), "has 0 documents, but its manifest lists"),
    ],
)
def test_rows_that_differ_from_the_manifest(
    packed: Path, tmp_path: Path, change: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    changed = rewrite(load_manifest(packed / "rows_text_document"), tmp_path, change)
    with pytest.raises(DataError, match=message):
        verify(changed)


def test_user_errors(packed: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ((tmp_path / "missing",), "no packed dataset here"),
        ((packed,), "several datasets (rows_text_document, whole_text_document)"),
        ((packed / "rows_text_document", "--samples", 1), "--tokenizer: needed"),
        ((packed / "rows_text_document", "--samples", 1, "--tokenizer", tmp_path), "contains no tokenizer.json"),
        ((packed / "rows_text_document", "--png", packed / "in.jsonl" / "a.png"), "the plot cannot be written"),
    ):
        result = run(*arguments)
        assert result.returncode == 2 and message in result.stderr.splitlines()[-1], result.stderr


def test_conversion_to_mmap(packed: Path, tmp_path: Path) -> None:
    tokenizer = packed / "sample" / "tokenizer"
    prefix = packed / "whole_text_document"
    result = run(prefix, "--convert", tmp_path / "new", "--tokenizer", tokenizer, "--seq-length", 16)
    assert result.returncode == 0, result.stderr
    manifest = load_manifest(tmp_path / "new_text_document")
    verify(manifest)
    assert (manifest.num_tokens, manifest.num_documents) == (load_manifest(prefix).num_tokens, 4)
