"""Manifests of datasets without files, and resolved runs on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ascend_cpt.config.loader import load_config
from ascend_cpt.data.packed.manifest import Manifest, Shard
from ascend_cpt.data.tokenizing.info import TokenizerInfo
from ascend_cpt.run.resolve import resolve
from ascend_cpt.run.resolved_run import ResolvedRun

REPOSITORY = Path(__file__).resolve().parents[3]
SOURCES = {"web": 10_000, "code": 4_000, "qa": 500}


@pytest.fixture
def repository() -> Path:
    """Return the root of the repository."""
    return REPOSITORY


@pytest.fixture
def make_manifest() -> Callable[..., Manifest]:
    """Return a function that makes the manifest of a dataset in one shard."""

    def make(
        *,
        num_rows: int = 1000,
        seq_length: int = 256,
        vocab_size: int = 4096,
        eod_id: int = 0,
        pad_id: int = 1,
        fingerprint: str = "tokenizer",
    ) -> Manifest:
        shard = Shard(
            file="x.mindrecord0",
            size_bytes=1,
            sha256="",
            index_file="x.mindrecord0.db",
            index_size_bytes=1,
            index_sha256="",
            num_rows=num_rows,
            num_tokens=num_rows * (seq_length + 1),
            num_documents=num_rows,
            text_bytes=num_rows,
        )
        tokenizer = TokenizerInfo(
            type="PretrainedFromHF",
            name="x",
            fingerprint=fingerprint,
            vocab_size=vocab_size,
            eod_id=eod_id,
            pad_id=pad_id,
        )
        return Manifest(
            key="text",
            output_format="mindrecord",
            seq_length=seq_length,
            tokenizer=tokenizer,
            shards=(shard,),
            path=Path("/data/x_text_document.manifest.json"),
        )

    return make


@pytest.fixture
def resolve_run(tmp_path: Path, make_manifest: Callable[..., Manifest]) -> Callable[..., ResolvedRun]:
    """Return a function that resolves a run of 1000 steps of 8 rows of 256 tokens; arguments replace `cpt:` keys."""

    def run(*, num_rows: dict[str, int] | None = None, **changes: Any) -> ResolvedRun:
        rows = num_rows or SOURCES
        cpt = {
            "init_from": "random",
            "seq_length": 256,
            "global_batch_size": 8,
            "train_tokens": 1000 * 8 * 256,
            "schedule": {"preset": "reuse", "base_final_lr": 1e-4},
            "sources": {name: {"path": name} for name in rows},
            **changes,
        }
        bases = [str(REPOSITORY / f"configs/base/{name}.yaml") for name in ("cpu_tiny", "qwen3_tiny")]
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({"base_config": bases, "cpt": cpt}, sort_keys=False), encoding="utf-8")
        manifests = {name: make_manifest(num_rows=count) for name, count in rows.items()}
        return resolve(load_config(path), world_size=1, sources=manifests)

    return run
