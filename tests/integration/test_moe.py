"""Training of a tiny mixture of experts on the CPU: exact resume, records of the experts, guard, export."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.conftest import read_history, run_command

Completed = subprocess.CompletedProcess[str]
EXPERTS = {"num_experts": 4, "moe_intermediate_size": 32, "moe_z_loss_coeff": 0.01}


@pytest.fixture
def write_moe(write_config: Callable[..., Path]) -> Callable[..., Path]:
    """Return a function that writes a configuration of a run with four experts per layer and 12 steps."""

    def write(**changes: Any) -> Path:
        defaults = {"train_tokens": 12 * 8 * 64, "monitor": {"expert_every_steps": 5}}
        path = write_config("qwen3_moe", **{**defaults, **changes})
        sections = yaml.safe_load(path.read_text(encoding="utf-8"))
        sections["model"]["model_config"] |= EXPERTS
        path.write_text(yaml.safe_dump(sections), encoding="utf-8")
        return path

    return write


def read_records(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def test_training_resumes_exactly_and_the_export_has_the_same_loss(
    write_moe: Callable[..., Path], train: Callable[..., Completed], tmp_path: Path
) -> None:
    validation = yaml.safe_load(write_moe().read_text(encoding="utf-8"))["cpt"]["validation"] | {"every": "4 steps"}
    result = train(write_moe(run_name="whole", validation=validation))
    assert result.returncode == 0, result.stdout + result.stderr
    whole = tmp_path / "output/whole"
    config = write_moe(run_name="stopped", validation=validation)
    for arguments in (["--stop-at-step", "8"], []):
        result = train(config, *arguments)
        assert result.returncode == 0, result.stdout + result.stderr
    stopped = tmp_path / "output/stopped"
    assert read_history(stopped) == read_history(whole)
    assert read_records(stopped, "experts") == read_records(whole, "experts")
    assert (stopped / "expert_loads.json").read_bytes() == (whole / "expert_loads.json").read_bytes()
    check_expert_records(whole)

    exported = tmp_path / "exported"
    command = [sys.executable, "tools/convert_weights.py", "to-hf", str(whole), str(exported)]
    result = run_command(command)
    assert result.returncode == 0, result.stderr
    result = train(write_moe(run_name="next", init_from=str(exported)), "--stop-at-step", "1")
    assert result.returncode == 0, result.stderr
    first, last = read_records(tmp_path / "output/next", "validation")[0], read_records(whole, "validation")[-1]
    assert first["loss"] == pytest.approx(last["loss"], abs=1e-6)


def check_expert_records(run_dir: Path) -> None:
    records, steps = read_records(run_dir, "experts"), read_records(run_dir, "step")
    assert [(record["step"], record["num_steps"]) for record in records] == [(5, 5), (10, 5), (12, 2)]
    for record in records:
        assert 0.99 <= record["balance_loss"] < 2 and record["z_loss"] > 0
        assert 0 < record["entropy"] <= 1 <= record["max_load"] <= 2  # 2 of 4 experts
    for record in steps:
        # Two layers, with weights of 0.001 and 0.01.
        assert 2 * 0.001 < record["extra_loss"] < 0.1
    for_last = sum(record["extra_loss"] for record in steps[10:]) / 2
    assert for_last == pytest.approx(2 * (0.001 * records[-1]["balance_loss"] + 0.01 * records[-1]["z_loss"]), rel=1e-4)
    loads = json.loads((run_dir / "expert_loads.json").read_text(encoding="utf-8"))
    assert (loads["step"], loads["num_steps"]) == (12, 2)
    assert [sum(layer) for layer in loads["tokens"]] == [2 * 8 * 64 * 2] * 2


def test_an_overloaded_expert_stops_the_run(
    write_moe: Callable[..., Path], train: Callable[..., Completed], tmp_path: Path
) -> None:
    result = train(write_moe(guards={"max_expert_load": 1.01}))
    assert result.returncode == 1
    assert "stopped at step 5: expert" in result.stderr and "cpt.guards.max_expert_load 1.01" in result.stderr


def test_settings_of_another_model_are_refused(write_moe: Callable[..., Path], train: Callable[..., Completed]) -> None:
    result = train(write_moe(), "--set", "model.model_config.routed_scaling_factor=1.5")
    assert result.returncode == 2
    assert "model.model_config.routed_scaling_factor: 1.5 is not supported" in result.stderr


def test_two_processes_record_the_loads_of_both(
    write_moe: Callable[..., Path],
    train: Callable[..., Completed],
    launch: Callable[..., Completed],
    tmp_path: Path,
    free_ports: list[int],
) -> None:
    result = train(write_moe(run_name="one"), "--stop-at-step", "5")
    assert result.returncode == 0, result.stdout + result.stderr
    config = write_moe(run_name="two")
    result = launch(config, "--stop-at-step", "5", port=free_ports[0], log_dir=tmp_path / "logs")
    assert result.returncode == 0, result.stdout + result.stderr
    one, two = (read_records(tmp_path / "output" / name, "experts")[0] for name in ("one", "two"))
    for name in ("balance_loss", "z_loss", "entropy", "max_load", "layer_max_load"):
        assert two[name] == pytest.approx(one[name], rel=2e-3), name
    losses = [
        [record["loss"] for record in read_records(tmp_path / "output" / name, "step")] for name in ("one", "two")
    ]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
