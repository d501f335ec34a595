"""Log-likelihoods and scores of tasks on tiny models equal those of lm-evaluation-harness (tests/reference/tasks)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mindformers")

from ascend_cpt.backend import evaluation_network
from ascend_cpt.backend.evaluation_network import EvaluationNetwork, count_loss_chunks
from ascend_cpt.backend.models.chunked_loss import TokenLosses
from ascend_cpt.backend.training.validation import score_requests
from ascend_cpt.config.parallel_layout import ParallelLayout
from ascend_cpt.config.task_schema import TaskConfig
from ascend_cpt.data.packed.network_inputs import RowFormat
from ascend_cpt.model.sizes import read_config
from ascend_cpt.tasks.load import load_task
from ascend_cpt.tasks.score import score_task

REFERENCE = Path(__file__).resolve().parents[2] / "reference"
EXPECTED = json.loads((REFERENCE / "tasks/lm_eval.json").read_text(encoding="utf-8"))
FLOAT32 = dict.fromkeys(("params_dtype", "compute_dtype", "layernorm_compute_dtype", "rotary_dtype"), "float32")


def read_task_config(name: str) -> TaskConfig:
    fields = dict(EXPECTED["tasks"][name]["config"])
    for key in ("path", "few_shot_path"):
        if key in fields:
            fields[key] = str(REFERENCE / "tasks" / fields[key])
    return TaskConfig(**fields)


def encode(text: str) -> list[int]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(REFERENCE / "tasks/tokenizer.json"))
    return [int(token) for token in tokenizer.encode(text, add_special_tokens=False).ids]


@pytest.mark.parametrize("chunks", [1, 8])
@pytest.mark.parametrize("model", list(EXPECTED["models"]))
def test_scores_are_those_of_lm_eval(model: str, chunks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    facts, length = EXPECTED["models"][model], EXPECTED["seq_length"]
    config = {**read_config(REFERENCE / model), "max_position_embeddings": length, **FLOAT32}
    config = {
        key: value for key, value in config.items() if key not in ("dtype", "torch_dtype", "transformers_version")
    }
    rows = 4
    monkeypatch.setattr(evaluation_network, "MAX_LOGITS_TOKENS", rows * length // chunks)
    network = EvaluationNetwork(
        config,
        row_format=RowFormat(seq_length=length, pad_id=127, eod_id=2, micro_batch_size=rows),
        layout=ParallelLayout(world_size=1, data_parallel=1),
        device="CPU",
        rank=0,
    )
    network.load(REFERENCE / model)
    parts = [cell.num_chunks for _, cell in network.scorer.cell.cells_and_names() if isinstance(cell, TokenLosses)]
    assert parts == [chunks] * (chunks > 1)
    for name, entry in EXPECTED["tasks"].items():
        task = load_task(
            name,
            read_task_config(name),
            encode,
            seq_length=length,
            prefix_token=facts["prefix_token"],
            add_prefix=facts["adds_bos"],
        )
        log_likelihoods, greedy = score_requests(network.scorer, task.requests)
        expected: dict[str, Any] = entry["results"][model]
        np.testing.assert_allclose(log_likelihoods, expected["log_likelihoods"], atol=1e-3, rtol=1e-5, err_msg=name)
        assert greedy.tolist() == expected["greedy"], name
        score = score_task(task, log_likelihoods, greedy)
        for ours, theirs in entry["metrics"].items():
            assert score.metrics[ours] == pytest.approx(expected["scores"][theirs], abs=1e-5), (name, ours)


@pytest.mark.parametrize(("seq_length", "rows", "chunks"), [(4096, 1, 1), (32768, 1, 8), (4096, 8, 8), (8190, 4, 2)])
def test_parts_of_evaluated_rows(seq_length: int, rows: int, chunks: int) -> None:
    row_format = RowFormat(seq_length=seq_length, pad_id=0, eod_id=1, micro_batch_size=rows)
    assert count_loss_chunks(row_format, {}) == chunks
    assert count_loss_chunks(row_format, {"mtp_num_layers": 1}) == 1
