"""Manifests of datasets that need no files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ascend_cpt.data.manifest import Manifest, Shard, TokenizerInfo

REPOSITORY = Path(__file__).resolve().parents[3]


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
