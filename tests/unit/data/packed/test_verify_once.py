"""Data files are verified once, and again after they were modified."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ascend_cpt.data.packed.checksum import checksum_file
from ascend_cpt.data.packed.manifest import Manifest, Shard, manifest_path, write_manifest
from ascend_cpt.data.packed.verified import verify_once
from ascend_cpt.data.tokenizing.info import TokenizerInfo
from ascend_cpt.errors import DataError


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    shards = []
    for index in range(2):
        data, db = tmp_path / f"x.mindrecord{index}", tmp_path / f"x.mindrecord{index}.db"
        data.write_bytes(bytes(range(200)))
        db.write_bytes(b"index")
        shards.append(
            Shard(
                file=data.name,
                size_bytes=200,
                sha256=checksum_file(data),
                index_file=db.name,
                index_size_bytes=5,
                index_sha256=checksum_file(db),
                num_rows=1,
                num_tokens=1,
                num_documents=1,
                text_bytes=1,
            )
        )
    tokenizer = TokenizerInfo(type="x", name="x", fingerprint="x", vocab_size=9, eod_id=0, pad_id=1)
    whole = Manifest(key="text", output_format="mindrecord", seq_length=8, tokenizer=tokenizer, shards=tuple(shards))
    return write_manifest(whole, manifest_path(tmp_path / "x"))


def test_each_file_is_read_once(manifest: Manifest, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    assert verify_once(manifest, record) == 410
    assert verify_once(manifest, record) == 0
    os.utime(tmp_path / "x.mindrecord1", ns=(1, 1))
    assert verify_once(manifest, record) == 200


def test_a_changed_byte_is_detected(manifest: Manifest, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    verify_once(manifest, record)
    path = tmp_path / "x.mindrecord1"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    for _ in range(2):
        with pytest.raises(DataError, match="x.mindrecord1: content differs"):
            verify_once(manifest, record)


def test_an_invalid_record_is_ignored(manifest: Manifest, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    record.write_text("{")
    assert verify_once(manifest, record) == 410
