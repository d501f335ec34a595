"""Stages on two nodes without shared storage, and again after a node has lost a checkpoint."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from ascend_cpt.checkpoint.locate import list_complete
from tests.integration.conftest import SEQ_LENGTH, run_command
from tests.integration.test_nodes import Completed, assert_all, steps_of

NUM_STEPS = 4
TIMEOUT_S = 900
"""Of one command; a busy machine takes minutes for a stage."""


@pytest.mark.slow
@pytest.mark.timeout(2 * TIMEOUT_S)
def test_stages_without_shared_storage(
    packed: Path, write_config: Callable[..., Path], tmp_path: Path, free_ports: list[int]
) -> None:
    homes = [tmp_path / f"node{rank}" for rank in range(2)]
    for home in homes:
        shutil.copytree(packed.parent, home / "data")
        sources = {"train": {"path": str(home / "data" / packed.name)}}
        config = write_config(
            train_tokens=NUM_STEPS * 8 * SEQ_LENGTH,
            sources=sources,
            storage={"shared": False},
            validation={"max_rows": 8, "sets": {"held": sources["train"]}},
            checkpoint={"every": "2 steps"},
        )
        advance = {"advance_when": {"set": "held", "max_increase": 1.0}}
        second = {"cpt.schedule": {"peak_lr": 1e-4}}
        entries = [
            {"name": "one", "config": str(config), **advance},
            {"name": "two", "config": str(config), "set": second},
        ]
        (home / "both.yaml").write_text(yaml.safe_dump({"stages": entries}), encoding="utf-8")

    def train(port: int) -> list[Completed]:
        def run(rank: int) -> Completed:
            home = homes[rank]
            form = ["2", "1", "127.0.0.1", str(port), str(rank), str(home / "log"), "False", "120"]
            command = [sys.executable, "tools/train_stages.py", str(home / "both.yaml"), *form]
            return run_command(
                [*command, "--output_dir", str(home / "output")],
                env={"ASCEND_CPT_ALLOW_LOCAL_MASTER": "1"},
                timeout_s=TIMEOUT_S,
            )

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(run, range(2)))

    assert_all(train(free_ports[0]), 0, "all 2 stages are complete")
    first, second_run = ([home / f"output/both_{name}" for home in homes] for name in ("one", "two"))
    for runs in (first, second_run):
        assert steps_of(runs[0]) == steps_of(runs[1])
        assert len(steps_of(runs[0])) == NUM_STEPS
    expected = steps_of(second_run[0])
    # Node 1 loses the last checkpoint of both stages: all nodes train these steps again, with the same losses.
    for runs in (first, second_run):
        shutil.rmtree(runs[1] / "checkpoint/iteration_00000004")
    again = train(free_ports[1])
    assert_all(again, 0, "all 2 stages are complete")
    assert again[0].stdout.count("continuing at step 2") == 2
    assert steps_of(second_run[1]) == expected
    assert sorted(list_complete(first[1] / "checkpoint")[0]) == [2, 4]


@pytest.mark.slow
@pytest.mark.timeout(2 * TIMEOUT_S)
def test_raw_text_of_stages_without_shared_storage(
    tokenizer: Path, write_config: Callable[..., Path], tmp_path: Path, free_ports: list[int]
) -> None:
    """Each node packs the rows of both stages once. When all is complete, the nodes do not wait for a rendezvous."""
    lines = [json.dumps({"text": f"the cat sat on the mat number {k} " * 40}) for k in range(200)]
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    raw = {"input": str(tmp_path / "text.jsonl"), "tokenizer": str(tokenizer), "n_subs": 1, "packing": "best-fit"}
    config = write_config(
        train_tokens=NUM_STEPS * 8 * SEQ_LENGTH,
        schedule={"peak_lr": 1e-4},
        sources={"web": {"raw": raw}},
        storage={"shared": False},
        validation=None,
    )
    longer = {"cpt.seq_length": 2 * SEQ_LENGTH, "cpt.train_tokens": NUM_STEPS * 8 * 2 * SEQ_LENGTH}
    longer["model.model_config.max_position_embeddings"] = 2 * SEQ_LENGTH
    entries = [{"name": "one", "config": str(config)}, {"name": "two", "config": str(config), "set": longer}]
    (tmp_path / "both.yaml").write_text(yaml.safe_dump({"stages": entries}), encoding="utf-8")

    def train(port: int, *arguments: str) -> list[Completed]:
        def run(rank: int) -> Completed:
            home = tmp_path / f"node{rank}"
            form = ["2", "1", "127.0.0.1", str(port), str(rank), str(home / "log"), "False", "300"]
            command = [sys.executable, "tools/train_stages.py", str(tmp_path / "both.yaml"), *form, *arguments]
            env = {"ASCEND_CPT_ALLOW_LOCAL_MASTER": "1", "XDG_CACHE_HOME": str(home / "cache")}
            return run_command([*command, "--output_dir", str(home / "output")], env=env, timeout_s=TIMEOUT_S)

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(run, range(2)))

    planned = train(free_ports[0], "--dry-run")
    assert_all(planned, 0, "rows of 128, packing best-fit: to be packed in")
    results = train(free_ports[1])
    assert_all(results, 0, "all 2 stages are complete")
    for rank, result in enumerate(results):
        assert result.stdout.count(", packing best-fit: share of cut documents") == 2, "two lengths"
        assert len(list((tmp_path / f"node{rank}/output/packed").glob("web-*/*.manifest.json"))) == 2
    assert len(steps_of(tmp_path / "node0/output/both_two")) == NUM_STEPS
    started_s = time.monotonic()
    again = train(free_ports[2])
    assert_all(again, 0, "all 2 stages are complete")
    assert "already complete at step 4" in again[0].stdout
    assert time.monotonic() - started_s < 240, "less than the time limit of a rendezvous"
    assert_all(train(free_ports[3], "--dry-run"), 0, "packed earlier in")
