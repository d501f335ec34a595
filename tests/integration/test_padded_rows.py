"""Training on rows of one document each: the loss is the mean over the real tokens of the global batch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ascend_cpt.data.packed.manifest import Manifest, manifest_path, write_manifest
from ascend_cpt.data.packed.packing import DOCUMENT, RowLayout
from ascend_cpt.data.packed.shard_writers import MINDRECORD, open_output
from ascend_cpt.data.tokenizing.base import join_encoded
from ascend_cpt.data.tokenizing.info import TokenizerInfo
from tests.integration.conftest import EOD_ID, PAD_ID, SEQ_LENGTH, VOCAB_SIZE, read_history, run_command

Completed = subprocess.CompletedProcess[str]
NUM_STEPS = 5
TIMEOUT_S = 900


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the prefix of a dataset of 60 documents of 2 to 100 tokens, one in a row."""
    generator = np.random.default_rng(2)
    documents = [
        ((np.arange(size) * generator.integers(1, 7) + generator.integers(500)) % 500 + 1).tolist()
        for size in generator.integers(1, 100, 60)
    ]
    prefix = tmp_path_factory.mktemp("padded") / "x_text_document"
    layout = RowLayout(seq_length=SEQ_LENGTH, pad_id=PAD_ID, eod_id=EOD_ID)
    output = open_output(MINDRECORD, prefix.with_name("x_text_document.mindrecord0"), layout, DOCUMENT, VOCAB_SIZE)
    output.add(join_encoded(documents))
    manifest = Manifest(
        key="text",
        output_format=MINDRECORD,
        seq_length=SEQ_LENGTH,
        tokenizer=TokenizerInfo(
            type="x", name="test", fingerprint="x", vocab_size=VOCAB_SIZE, eod_id=EOD_ID, pad_id=PAD_ID
        ),
        shards=(output.close(len(documents), 1000),),
        packing=DOCUMENT,
    )
    write_manifest(manifest, manifest_path(prefix))
    return prefix


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["across", "within"])
def test_two_workers_have_the_loss_of_one(
    attention: str,
    padded: Path,
    write_config: Callable[..., Path],
    launch: Callable[..., Completed],
    tmp_path: Path,
    free_ports: list[int],
) -> None:
    changes = {
        "train_tokens": NUM_STEPS * 8 * SEQ_LENGTH,
        "schedule": {"peak_lr": 1e-2},
        "sources": {"train": {"path": str(padded)}},
        "validation": {"sets": {"held": {"path": str(padded)}}},
        "document_attention": attention,
    }
    command = [sys.executable, "run_cpt.py", "--config", str(write_config(run_name="alone", **changes))]
    alone = run_command(command, timeout_s=TIMEOUT_S)
    assert alone.returncode == 0, alone.stdout + alone.stderr
    assert " of the tokens are padding" in alone.stdout
    config = write_config(run_name="both", **changes)
    both = launch(config, port=free_ports[0], log_dir=tmp_path / "log", timeout_s=TIMEOUT_S)
    assert both.returncode == 0, both.stdout + both.stderr
    one, two = (read_history(tmp_path / "output" / name) for name in ("alone", "both"))
    assert [record[:2] for record in one] == [record[:2] for record in two]
    assert len(one) >= NUM_STEPS + 1
    losses = [np.array([record[2] for record in records], float) for records in (one, two)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-5)
