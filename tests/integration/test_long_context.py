"""Long context: attention within documents and short validation rows, in runs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ascend_cpt.data.indexed import IndexedWriter
from ascend_cpt.data.manifest import Manifest, Shard, load_manifest, manifest_path, write_manifest
from ascend_cpt.data.tokenizing.base import Encoded

Train = Callable[..., subprocess.CompletedProcess[str]]
WriteConfig = Callable[..., Path]

NUM_TOKENS = 20 * 129


@pytest.fixture(scope="session")
def long_rows(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the prefix of an mmap dataset, which is cut into rows of any length."""
    prefix = tmp_path_factory.mktemp("long") / "long_text_document"
    writer = IndexedWriter(prefix, np.dtype(np.uint16))
    writer.write(Encoded(np.arange(NUM_TOKENS, dtype=np.int32) * 3 % 500, np.array([0, NUM_TOKENS])))
    writer.close()
    shard = Shard(
        file=f"{prefix.name}.bin",
        size_bytes=prefix.with_suffix(".bin").stat().st_size,
        sha256="",
        index_file=f"{prefix.name}.idx",
        index_size_bytes=prefix.with_suffix(".idx").stat().st_size,
        index_sha256="",
        num_rows=0,
        num_tokens=NUM_TOKENS,
        num_documents=1,
        text_bytes=NUM_TOKENS,
    )
    tokenizer = load_manifest(packed).tokenizer
    manifest = Manifest(key="text", output_format="mmap", seq_length=None, tokenizer=tokenizer, shards=(shard,))
    write_manifest(manifest, manifest_path(prefix))
    return prefix


def read_records(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def test_documents_are_kept_apart_in_training_and_in_validation_of_shorter_rows(
    train: Train, write_config: WriteConfig, long_rows: Path, tmp_path: Path
) -> None:
    """From equal random weights the loss of a validation set does not depend on the length of the run's rows."""
    within = {"document_attention": "within"}
    longer = {"seq_length": 128, "sources": {"train": {"path": str(long_rows)}}, "train_tokens": 20 * 8 * 128}
    base, losses = {}, {}
    for name, changes in {"across": {}, "within": within, "longer": {**within, **longer}}.items():
        result = train(write_config(run_name=name, **changes), "--stop-at-step", "3")
        assert result.returncode == 0, result.stderr
        run_dir = tmp_path / "output" / name
        base[name] = read_records(run_dir, "validation")[0]["loss"]
        losses[name] = [record["loss"] for record in read_records(run_dir, "step")]
    assert base["longer"] == pytest.approx(base["within"], abs=1e-5)
    assert abs(base["within"] - base["across"]) > 1e-4
    assert losses["within"] != losses["across"], "the rows that are trained on have borders as well"
    changed = train(write_config(run_name="within"))
    assert changed.returncode == 2 and "document_attention: 'within' → 'across'" in changed.stderr
