"""The manifest: writing, loading by prefix or folder, and validation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from ascend_cpt.data.packed.checksum import checksum_file
from ascend_cpt.data.packed.manifest import (
    Manifest,
    Shard,
    SourceFile,
    check_shards,
    load_manifest,
    manifest_path,
    write_manifest,
)
from ascend_cpt.data.tokenizing.info import TokenizerInfo
from ascend_cpt.errors import DataError

TOKENIZER = TokenizerInfo(
    type="PretrainedFromHF", name="tokenizer", fingerprint="f" * 64, vocab_size=4096, eod_id=4094, pad_id=4095
)


def make_dataset(folder: Path, name: str = "corpus_text_document", num_shards: int = 2) -> Manifest:
    shards = []
    for k in range(num_shards):
        file, index = folder / f"{name}.mindrecord{k}", folder / f"{name}.mindrecord{k}.db"
        file.write_bytes(bytes([k + 1]) * 5000)
        index.write_bytes(b"index")
        shards.append(
            Shard(
                file=file.name,
                size_bytes=5000,
                sha256=checksum_file(file),
                index_file=index.name,
                index_size_bytes=5,
                index_sha256=checksum_file(index),
                num_rows=3,
                num_tokens=40,
                num_documents=2,
                text_bytes=100,
                tail_tokens=4,
            )
        )
    manifest = Manifest(
        key="text",
        output_format="mindrecord",
        seq_length=16,
        tokenizer=TOKENIZER,
        shards=tuple(shards),
        sources=(SourceFile(path="a.jsonl", size_bytes=10, fingerprint="0" * 64),),
        rejected={"empty": 1},
        settings={"append_eod": True},
        versions={"python": "3.11"},
    )
    return write_manifest(manifest, manifest_path(folder / name))


@pytest.mark.parametrize("how", ["prefix", "manifest", "folder"])
def test_round_trip(tmp_path: Path, how: str) -> None:
    written = make_dataset(tmp_path)
    prefix = tmp_path / "corpus_text_document"
    loaded = load_manifest({"prefix": prefix, "manifest": manifest_path(prefix), "folder": tmp_path}[how])
    assert loaded == written
    assert (loaded.num_rows, loaded.num_tokens, loaded.num_documents, loaded.text_bytes) == (6, 80, 4, 200)
    assert loaded.folder == tmp_path
    check_shards(loaded, checksums=True)


def test_digest_depends_on_the_content_only(tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path)
    same = dataclasses.replace(
        manifest,
        sources=(),
        versions={},
        settings={},
        path=None,
        tokenizer=dataclasses.replace(TOKENIZER, name="elsewhere"),
    )
    assert same.digest == manifest.digest
    other_shard = dataclasses.replace(manifest.shards[0], sha256="1" * 64)
    for other in (
        dataclasses.replace(manifest, shards=(other_shard, *manifest.shards[1:])),
        dataclasses.replace(manifest, seq_length=17),
        dataclasses.replace(manifest, tokenizer=dataclasses.replace(TOKENIZER, fingerprint="e" * 64)),
    ):
        assert other.digest != manifest.digest


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no packed dataset here"):
        load_manifest(tmp_path / "missing_text_document")
    with pytest.raises(DataError, match="no such manifest"):
        load_manifest(manifest_path(tmp_path / "missing_text_document"))
    with pytest.raises(DataError, match="contains no packed dataset"):
        load_manifest(tmp_path)


def test_several_datasets_in_a_folder_are_refused(tmp_path: Path) -> None:
    make_dataset(tmp_path, "a_text_document")
    make_dataset(tmp_path, "b_text_document")
    with pytest.raises(DataError, match=r"several datasets \(a_text_document, b_text_document\)"):
        load_manifest(tmp_path)
    assert load_manifest(tmp_path / "b_text_document").shards[0].file.startswith("b_text_document")


def edit(path: Path, change: dict[str, object]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def test_invalid_manifests_are_refused(tmp_path: Path) -> None:
    path = manifest_path(tmp_path / "corpus_text_document")
    for change, message in (
        ({"seq_length": 17}, "changed after it was written"),
        ({"format_version": 99}, "manifest format 99"),
        ({"tokenizer": {"type": "x"}}, "incomplete or has an unknown entry"),
        ({"shards": [{"surprise": 1}]}, "incomplete or has an unknown entry"),
        ({"shards": 3}, "incomplete or has an unknown entry"),
    ):
        make_dataset(tmp_path)
        edit(path, change)
        with pytest.raises(DataError, match=message):
            load_manifest(path)
    for text in ("{", "[]", ""):
        path.write_text(text)
        with pytest.raises(DataError):
            load_manifest(path)


def test_missing_truncated_and_changed_shards_are_detected(tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path)
    shard = tmp_path / manifest.shards[1].file
    shard.write_bytes(b"\x07" * 5000)
    check_shards(manifest)
    with pytest.raises(DataError, match="mindrecord1: content differs"):
        check_shards(manifest, checksums=True)
    shard.write_bytes(b"\x02" * 4999)
    with pytest.raises(DataError, match="4999 bytes, expected 5000"):
        check_shards(manifest)
    shard.unlink()
    with pytest.raises(DataError, match="mindrecord1: missing"):
        check_shards(manifest)
    shard.write_bytes(b"\x02" * 5000)
    (tmp_path / manifest.shards[0].index_file).unlink()
    with pytest.raises(DataError, match=r"mindrecord0\.db: missing"):
        check_shards(manifest)


def test_checksum_does_not_depend_on_holes(tmp_path: Path) -> None:
    sparse, full = tmp_path / "sparse", tmp_path / "full"
    with open(sparse, "wb") as file:
        file.seek(10 << 20)
        file.write(b"end")
    full.write_bytes(sparse.read_bytes())
    assert checksum_file(sparse) == checksum_file(full)
    moved = tmp_path / "moved"
    page = b"end".ljust(4096, b"\0")
    moved.write_bytes(page + bytes(2 * 4096))
    before = checksum_file(moved)
    moved.write_bytes(bytes(4096) + page + bytes(4096))
    assert checksum_file(moved) != before
    longer = tmp_path / "longer"
    longer.write_bytes(full.read_bytes() + b"\0")
    assert checksum_file(longer) != checksum_file(full)
