"""Efficiencies fitted to the step times of run folders."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from ascend_cpt.errors import ConfigError
from ascend_cpt.files import write_text
from ascend_cpt.plan.case import GIGABYTE
from ascend_cpt.plan.machines import MACHINES
from ascend_cpt.plan.speed.throughput import estimate_step
from ascend_cpt.run.mindformers_yaml import make_mindformers_config, render_yaml
from ascend_cpt.run.planning.measured import read_measured, read_run_speed, refit, render_changes_of, write_measured
from ascend_cpt.run.planning.plan_run import Cluster, plan_run

REPOSITORY = Path(__file__).resolve().parents[4]
MACHINE = MACHINES["910B"]
# A cluster whose matrix products are slower and whose kernels take longer to launch.
TRUTH = dataclasses.replace(MACHINE.efficiency, matmul=0.6, layer_s=1.8e-3)


def make_run(folder: Path, name: str, changes: dict[str, Any] | None = None, **info: Any) -> Path:
    """Write the folder of a run as training writes it, with the step times of `TRUTH`."""
    cluster = Cluster(num_nodes=None, devices_per_node=8, device="910B", device_bytes=64 * GIGABYTE)
    run, plan = plan_run(REPOSITORY / f"configs/qwen3/{name}.yaml", changes or {}, cluster)
    folder.mkdir()
    sections = make_mindformers_config(run, resume_from=None, init_from=None)
    write_text(folder / "resolved.yaml", render_yaml(sections, "test"))
    chunks = run.config.cpt.loss_chunks
    values = {"device_name": MACHINE.chip, "num_devices": run.layout.world_size, "loss_chunks": chunks, **info}
    write_text(folder / "run.json", json.dumps(values))
    step_s = estimate_step(plan.case, MACHINE, TRUTH).step_s
    times = [100.0, step_s * 3, step_s * 2, *[step_s * (1 + 0.01 * (-1) ** step) for step in range(10)]]
    others = {"total_steps": 13, "loss": 3.0, "learning_rate": 1e-5, "grad_norm": 1.0, "tokens": 1, "tokens_per_s": 1.0}
    records = [
        {"kind": "step", "step": step, **others, "step_time_s": took} for step, took in enumerate(times, start=1)
    ]
    write_text(folder / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_refit_predicts_other_runs_and_says_what_changed(tmp_path: Path) -> None:
    names = ("cpt_qwen3_8b", "cpt_qwen3_0_6b_4k", "cpt_qwen3_4b_4k")
    speeds = [read_run_speed(make_run(tmp_path / name, name)) for name in names]
    measured = refit(speeds)
    other = read_run_speed(make_run(tmp_path / "other", "cpt_qwen3_1_7b_4k"))
    planned = estimate_step(other.case, MACHINE, measured.efficiency).tokens_per_device_s
    published = estimate_step(other.case, MACHINE, MACHINE.efficiency).tokens_per_device_s
    assert planned == pytest.approx(other.tokens_per_device_s, rel=0.05)
    assert abs(published / other.tokens_per_device_s - 1) > 0.1
    assert measured.band.source == "measured, left-out" and measured.band.num_figures == 3
    text = render_changes_of(speeds, measured)
    assert "matmul: 0.77 -> 0." in text and text.count("is now") == 3
    path = tmp_path / "plan_efficiencies.json"
    write_measured(path, measured, speeds)
    assert read_measured(path) == measured


@pytest.mark.parametrize("chunks", [1, 8])
def test_the_case_is_read_back_from_the_run_folder(tmp_path: Path, chunks: int) -> None:
    cluster = Cluster(num_nodes=None, devices_per_node=8, device="910B", device_bytes=64 * GIGABYTE)
    changes = {"cpt.loss_chunks": chunks}
    _, plan = plan_run(REPOSITORY / "configs/qwen3/cpt_qwen3_32b_4k.yaml", changes, cluster)
    assert read_run_speed(make_run(tmp_path / "run", "cpt_qwen3_32b_4k", changes)).case == plan.case


def test_runs_of_older_versions_have_a_whole_loss(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", "cpt_qwen3_8b", {"cpt.loss_chunks": 1})
    info = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    del info["loss_chunks"]
    write_text(folder / "run.json", json.dumps(info))
    assert read_run_speed(folder).case.loss_chunks == 1


def test_unusable_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no run.json"):
        read_run_speed(tmp_path)
    on_cpu = make_run(tmp_path / "cpu", "cpt_qwen3_8b", device_name="CPU")
    with pytest.raises(ConfigError, match="ran on CPU"):
        read_run_speed(on_cpu)
    short = make_run(tmp_path / "short", "cpt_qwen3_8b")
    lines = (short / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    write_text(short / "metrics.jsonl", "".join(lines[:6]))
    with pytest.raises(ConfigError, match="3 steps after the first 3; at least 5"):
        read_run_speed(short)
    with pytest.raises(ConfigError, match="not a file of efficiencies"):
        read_measured(short / "run.json")
