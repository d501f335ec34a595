"""Manifests from elsewhere: wrong types, names that are paths, and deep nesting are refused in one line."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ascend_cpt.data.packed.manifest import (
    Manifest,
    Shard,
    SourceFile,
    describe_packing,
    load_manifest,
    manifest_path,
    write_manifest,
)
from ascend_cpt.data.tokenizing.info import TokenizerInfo
from ascend_cpt.errors import DataError
from tests.unit.weights.test_delivered_files import ODD_VALUES

SHARD = Shard(
    file="x.mindrecord0", size_bytes=1, sha256="", index_file="x.mindrecord0.db", index_size_bytes=1, index_sha256="",
    num_rows=1, num_tokens=9, num_documents=1, text_bytes=9,
)  # fmt: skip
MANIFEST = Manifest(
    key="text",
    output_format="mindrecord",
    seq_length=8,
    tokenizer=TokenizerInfo(type="x", name="x", fingerprint="x", vocab_size=9, eod_id=0, pad_id=1),
    shards=(SHARD,),
    sources=(SourceFile(path="a.jsonl", size_bytes=1, fingerprint="f"),),
    rejected={"empty": 1},
)


def seal(record: dict[str, Any]) -> str:
    """Return the manifest as one who changes it on purpose would write it: with the right digest."""
    kept = dict(record)
    for name in (
        "packing", "sources", "num_records", "num_filtered", "rejected", "left_out", "settings", "engine", "versions",
        "totals", "digest",
    ):  # fmt: skip
        kept.pop(name, None)
    kept["tokenizer"] = {key: value for key, value in kept["tokenizer"].items() if key != "name"}
    kept["shards"] = [
        {key: value for key, value in shard.items() if key != "num_cut_documents"} if isinstance(shard, dict) else shard
        for shard in kept["shards"]
    ]
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return json.dumps({**record, "digest": hashlib.sha256(text.encode()).hexdigest()})


@pytest.fixture
def record(tmp_path: Path) -> dict[str, Any]:
    path = write_manifest(MANIFEST, manifest_path(tmp_path / "x")).path
    assert path is not None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(seal(found), encoding="utf-8")
    assert load_manifest(tmp_path / "x") == MANIFEST, "the digest of `seal` is right"
    return found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": "../y.mindrecord0"}, "'../y.mindrecord0' is not a plain file name"),
        ({"index_file": "/y.db"}, "'/y.db' is not a plain file name"),
        ({"file": "x\0"}, "is not a plain file name"),
        ({"num_rows": -1}, "a count is negative"),
        ({"num_rows": "1"}, r"shards\[0\].num_rows: expected int, got '1'"),
        ({"size_bytes": None}, r"shards\[0\].size_bytes: expected int, got None"),
    ],
)
def test_a_changed_shard_is_refused(
    tmp_path: Path, record: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    record["shards"][0].update(change)
    (tmp_path / "x.manifest.json").write_text(seal(record), encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        load_manifest(tmp_path / "x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seq_length": None}, "seq_length: None"),
        ({"output_format": "mmap", "shards": []}, "0 instead of the one pair of files"),
        ({"path": "/etc"}, "path: expected Path"),
        ({"tokenizer": []}, "tokenizer: expected an object"),
        ({"packing": "first-fit"}, "packing: 'first-fit'"),
        ({"format_version": {}}, "manifest format a dict, expected 1"),
    ],
)
def test_a_changed_manifest_is_refused(
    tmp_path: Path, record: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    record.update(change)
    (tmp_path / "x.manifest.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load_manifest(tmp_path / "x")


def test_a_manifest_of_an_earlier_version_is_read(tmp_path: Path, record: dict[str, Any]) -> None:
    """The digest, which a resumed run compares, has not changed with the entries about packing."""
    del record["packing"], record["shards"][0]["num_cut_documents"]
    record["digest"] = "cd8a9ae041079676a2f8c6bcb275b56f2fcf00ceefac61438866aaf5bee44a30"
    (tmp_path / "x.manifest.json").write_text(json.dumps(record), encoding="utf-8")
    manifest = load_manifest(tmp_path / "x")
    assert manifest.packing == "concat" and manifest.num_cut_documents is None
    assert describe_packing(manifest) == "concat: share of cut documents unknown, of padding 0.00 %"


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "\0", "[1]", '{"format_version": 1, "format_version": 1}']
)
def test_text_that_is_no_object(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="the manifest cannot be read") as caught:
        load_manifest(tmp_path / "x")
    assert "\n" not in str(caught.value)


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_manifest_gives_a_traceback(tmp_path: Path, data: st.DataObject) -> None:
    record = copy.deepcopy(json.loads(json.dumps(dataclasses.asdict(dataclasses.replace(MANIFEST, path=None)))))
    del record["path"]
    node: Any = record
    while isinstance(node, dict | list) and node:
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        if data.draw(st.booleans()):
            node[key] = data.draw(ODD_VALUES)
            break
        node = node[key]
    (tmp_path / "y.manifest.json").write_text(json.dumps(record), encoding="utf-8")
    try:
        load_manifest(tmp_path / "y")
    except DataError as error:
        assert "\n" not in str(error)
