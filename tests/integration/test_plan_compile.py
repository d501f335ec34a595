"""Compiling without NPUs: MindSpore's slices and peak memory compared with the plan's."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from ascend_cpt.config.loader import load_config
from ascend_cpt.errors import ConfigError
from ascend_cpt.plan import slices
from ascend_cpt.plan.case import GIGABYTE, TrainingCase
from ascend_cpt.plan.memory import estimate_memory
from ascend_cpt.run.planning.assumed_run import resolve_without_data
from ascend_cpt.run.planning.plan_run import Cluster, plan_run
from ascend_cpt.run.planning.training_case import build_case
from ascend_cpt.simulate.compare_slices import find_differences, select_model_parameters
from ascend_cpt.simulate.compile_ranks import MICRO_BATCHES_PER_STAGE, load_shortened, simulate_run
from ascend_cpt.simulate.run_rank import RankResult, list_first_ranks, simulate_rank
from tests.emulation import needs_emulation
from tests.small_model import SMALL

REPOSITORY = Path(__file__).resolve().parents[2]
CLUSTER = Cluster(num_nodes=None, devices_per_node=8, device="910B", device_bytes=64 * GIGABYTE)
TIMEOUT_S = 280

pytestmark = needs_emulation


def write_config(folder: Path, layout: dict[str, Any], *, model: str = "qwen3_8b", **sections: Any) -> Path:
    """Write the configuration of a small model with a layout."""
    config: dict[str, Any] = {
        "base_config": [
            str(REPOSITORY / "configs/base" / name)
            for name in ("atlas_a2_8x64g.yaml", "placeholders.yaml", f"models/{model}.yaml")
        ],
        "parallel_config": layout,
        "runner_config": {"batch_size": 1},
        "cpt": {"init_from": "random", "seq_length": 2048, "global_batch_size": 4 * layout["data_parallel"]},
        "model": {"model_config": SMALL},
        **sections,
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def simulate(config: Path, rank: int) -> tuple[TrainingCase, RankResult]:
    run, plan = plan_run(config, {}, CLUSTER)
    result = simulate_rank(run, rank, num_steps=1, timeout_s=TIMEOUT_S, report=lambda line: None)
    return plan.case, result


def test_rank_compiles_as_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = {"data_parallel": 2, "model_parallel": 2, "pipeline_stage": 2, "use_seq_parallel": True}
    config = write_config(tmp_path, layout)
    case, result = simulate(config, rank=4)
    assert not result.error
    assert find_differences(case, result) == []
    assert result.peak_bytes == pytest.approx(estimate_memory(case)[1].peak_bytes, rel=0.1)
    own = {parameter.name for parameter in select_model_parameters(result.parameters)}
    assert "output_layer.weight" in own and "embedding.word_embeddings.weight" not in own
    kinds = {(exchange.kind, exchange.group) for exchange in result.exchanges}
    assert {("AllGather", "tensor"), ("ReduceScatter", "data"), ("Receive", "pipeline")} <= kinds
    # The check can fail: it detects a wrong rule in the plan.
    monkeypatch.setitem(slices.TENSOR_AXES, "mlp.linear_fc2.weight", 0)
    assert any("linear_fc2" in line for line in find_differences(case, result))


def test_command_reports_the_compiled_rank(tmp_path: Path) -> None:
    layout = {"data_parallel": 4, "model_parallel": 2, "pipeline_stage": 1, "use_seq_parallel": True}
    config = write_config(tmp_path, layout, model="llama3_8b")
    command = [sys.executable, "tools/plan.py", str(config), "--simulate", "--layers-per-stage", "1", "--json"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    (rank,) = record["ranks"]
    assert rank["differences"] == [] and not rank["result"]["error"]
    assert rank["result"]["peak_bytes"] == pytest.approx(rank["planned_peak_bytes"], rel=0.1)
    assert "rank 0: compiling" in done.stderr


def test_rank_is_stopped_after_the_timeout(tmp_path: Path) -> None:
    run, _ = plan_run(write_config(tmp_path, {"data_parallel": 2}), {}, CLUSTER)
    result = simulate_rank(run, 0, num_steps=1, timeout_s=1, report=lambda line: None)
    assert "stopped after 1 s; raise --timeout" in result.error
    assert result.duration_s < 30


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left_when_the_command_is_interrupted(tmp_path: Path, number: signal.Signals) -> None:
    config = write_config(tmp_path, {"data_parallel": 2})
    work = tmp_path / "work"
    work.mkdir()
    command = [sys.executable, "tools/plan.py", str(config), "--compile"]
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "TMPDIR": str(work)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts the tests in the background makes them ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None and "building" in process.stderr.readline()
    (child,) = (entry for entry in psutil.Process(process.pid).children() if entry.is_running())
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    child.wait(timeout=3)
    if number == signal.SIGINT:
        assert process.returncode == 130 and stderr.endswith("interrupted\n")
        assert not list(work.iterdir())


def test_error_of_mindspore_is_explained_with_the_key(tmp_path: Path) -> None:
    config = write_config(tmp_path, {"data_parallel": 2, "model_parallel": 2}, recompute_config={"recompute": True})
    run, _ = plan_run(config, {"model.model_config.use_flash_attention": False}, CLUSTER)
    result = simulate_rank(run, 0, num_steps=1, timeout_s=TIMEOUT_S, report=lambda line: None)
    assert "use_flash_attention must be True" in result.error
    assert "use_attn_mask_compression" in result.error and ".yaml" in result.error


def draw_layout(generator: random.Random) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a random layout and model sizes that may or may not fit."""
    layout = {
        "data_parallel": generator.choice([1, 2, 3, 4]),
        "model_parallel": generator.choice([1, 2, 4, 8]),
        "pipeline_stage": generator.choice([1, 2, 4]),
        "context_parallel": generator.choice([1, 1, 1, 2]),
        "use_seq_parallel": generator.choice([True, False]),
    }
    changes = {
        "model.model_config.num_key_value_heads": generator.choice([2, 4, 8]),
        "model.model_config.tie_word_embeddings": generator.choice([False, False, True]),
        "model.model_config.num_hidden_layers": generator.choice([2, 3, 4]),
        "model.model_config.vocab_size": generator.choice([8192, 8196]),
        "recompute_config.recompute": generator.choice([True, False]),
        "cpt.global_batch_size": layout["data_parallel"] * layout["pipeline_stage"] * generator.choice([1, 2]),
    }
    return layout, changes


@pytest.mark.slow
@pytest.mark.timeout(20_000)
def test_plan_and_compiler_agree_on_legal_layouts(tmp_path: Path) -> None:
    generator = random.Random(7)
    disagreements, num_compiled = [], 0
    while num_compiled < 30:
        layout, changes = draw_layout(generator)
        config = write_config(tmp_path, layout, model=generator.choice(["qwen3_8b", "llama3_8b", "qwen2_72b"]))
        try:
            run, plan = plan_run(config, changes, CLUSTER)
        except ConfigError:
            continue
        num_compiled += 1
        rank = generator.choice(list_first_ranks(run))
        result = simulate_rank(run, rank, num_steps=1, timeout_s=900, report=lambda line: None)
        differences = [result.error] if result.error else find_differences(plan.case, result)
        print(num_compiled, layout, changes, f"rank {rank}", differences or f"agrees after {result.duration_s:.0f} s")
        if differences:
            disagreements.append((layout, changes, rank, differences[:2]))
    assert not disagreements


SHIPPED = [
    path
    for path in sorted((REPOSITORY / "configs").glob("*/cpt_*.yaml"))
    if "tiny" not in path.stem and path.parent.name != "base"
]


@pytest.mark.slow
@pytest.mark.timeout(6000)
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_config_compiles_on_every_stage(path: Path) -> None:
    run, _ = plan_run(path, {}, CLUSTER)
    short = load_shortened(run, {}, layers_per_stage=2, micro_batches=run.layout.pipeline_parallel)
    assert load_config(path).cpt.seq_length == short.cpt.seq_length
    resolved = resolve_without_data(short, run.layout.world_size)
    case = build_case(resolved)
    for rank in list_first_ranks(resolved):
        result = simulate_rank(resolved, rank, num_steps=1, timeout_s=1400, report=lambda line: None)
        print(f"{path.stem} rank {rank}: {result.error or 'compiled'} after {result.duration_s:.0f} s")
        assert not result.error
        assert find_differences(case, result) == []


@pytest.mark.slow
@pytest.mark.timeout(6000)
@pytest.mark.parametrize(
    ("name", "num_micro"),
    [
        ("llama2/cpt_llama2_70b_16k", 64),
        ("llama3/cpt_llama3_70b", 128),
        ("qwen2/cpt_qwen2_72b_4k", 256),
        ("qwen3/cpt_qwen3_32b_4k", 128),
    ],
)
def test_every_micro_batch_of_a_shipped_config_compiles(name: str, num_micro: int) -> None:
    path = REPOSITORY / f"configs/{name}.yaml"
    run, _ = plan_run(path, {}, CLUSTER)
    # The last stage holds the loss, whose sums and gradients depend most on the number of micro batches.
    last = list_first_ranks(run)[-1]
    case, (report,) = simulate_run(
        run,
        {},
        ranks=[last],
        layers_per_stage=2,
        num_steps=1,
        timeout_s=2800,
        report=print,
        all_micro_batches=True,
    )
    assert case.num_micro_batches == num_micro > MICRO_BATCHES_PER_STAGE * run.layout.pipeline_parallel
    assert not report.result.error
    assert report.differences == ()
    # One receive of activations from the stage before for each micro batch.
    received = [exchange for exchange in report.result.exchanges if exchange.kind == "Receive"]
    assert sum(exchange.count for exchange in received) >= num_micro
