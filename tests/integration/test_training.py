"""Training of tiny models on the CPU: losses, validation, checkpoints, exact resume, error messages."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.integration.conftest import read_history, run_command

Completed = subprocess.CompletedProcess[str]


def drop_validation_at(history: list[tuple[object, ...]], step: int) -> list[tuple[object, ...]]:
    return [record for record in history if record[:2] != ("validation", step)]


@pytest.fixture
def undisturbed(write_config: Callable[..., Path], train: Callable[..., Completed], tmp_path: Path) -> Path:
    """Return the folder of an uninterrupted run of 20 steps in one process."""
    result = train(write_config(run_name="whole"))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "step 20/20" in result.stdout and "tokens/s" in result.stdout and "ETA" in result.stdout
    assert "INFO" not in result.stdout, "MindFormers' log lines go to a file"
    return tmp_path / "output" / "whole"


def test_train_stop_resume_and_continue_from_weights(
    undisturbed: Path, write_config: Callable[..., Path], train: Callable[..., Completed], tmp_path: Path
) -> None:
    config = write_config(run_name="stopped")
    stopped = train(config, "--stop-at-step", "7")
    assert stopped.returncode == 0, stopped.stderr
    resumed = train(config)
    assert resumed.returncode == 0, resumed.stderr
    assert "continuing at step 7" in resumed.stdout
    whole = read_history(undisturbed)
    assert drop_validation_at(read_history(tmp_path / "output/stopped"), 7) == whole
    losses = [record[2] for record in whole if record[0] == "step"]
    assert len(losses) == 20 and losses[-1] < losses[0] - 0.1
    for name in ("resolved.yaml", "loss.png", "logs/rank_0.log"):
        assert (undisturbed / name).stat().st_size > 0
    sections = yaml.safe_load((undisturbed / "resolved.yaml").read_text(encoding="utf-8"))
    assert "cpt" not in sections and sections["lr_schedule"]["type"] == "CptTableLR"
    assert sections["model"]["model_config"]["pad_token_id"] == 511
    state = json.loads((undisturbed / "checkpoint/iteration_00000020/cpt_state.json").read_text())
    assert (state["step"], state["position"], state["tokens"]) == (20, 160, 160 * 64)

    again = train(config)
    assert again.returncode == 0 and "already complete at step 20" in again.stdout

    # A second run from the first one's weights starts with its final validation loss.
    continued = train(write_config(run_name="next", init_from=str(undisturbed)), "--stop-at-step", "1")
    assert continued.returncode == 0, continued.stderr
    final = [record[2] for record in whole if record[0] == "validation"][-1]
    assert read_history(tmp_path / "output/next")[0][2] == pytest.approx(final, abs=1e-6)


def test_resume_errors_and_damaged_checkpoints(
    write_config: Callable[..., Path], train: Callable[..., Completed], tmp_path: Path
) -> None:
    config = write_config(checkpoint={"every": "5 steps", "keep_last": 2})
    assert train(config, "--stop-at-step", "15").returncode == 0
    root = tmp_path / "output/run/checkpoint"
    assert sorted(path.name for path in root.glob("iteration_*")) == ["iteration_00000010", "iteration_00000015"]

    refused = train(config, "--set", "cpt.schedule.peak_lr=2e-3")
    assert refused.returncode == 2
    assert "schedule.segments.warmup.end_lr: 0.001 → 0.002" in refused.stderr
    overwriting = train(config, "--resume_training", "False")
    assert overwriting.returncode == 2 and "has checkpoints up to step 15" in overwriting.stderr
    missing = train(config, "--resume_training", str(tmp_path / "nowhere"))
    assert missing.returncode == 2 and "no such checkpoint" in missing.stderr
    other_shapes = train(
        write_config(run_name="wide", init_from=str(root)), "--set", "model.model_config.hidden_size=128"
    )
    assert other_shapes.returncode == 2 and "hidden_size: 64 → 128" in other_shapes.stderr

    early = train(config, "--stop-at-step", "15")
    assert early.returncode == 2 and "already at step 15" in early.stderr
    older = train(config, "--resume_training", str(root / "iteration_00000010"))
    assert older.returncode == 2 and "has a newer checkpoint (step 15)" in older.stderr

    newest_model = root / "iteration_00000015/cpt-model-0000000-0000001.safetensors"
    newest_model.write_bytes(newest_model.read_bytes()[:1000])
    exact = train(config, "--resume_training", str(root / "iteration_00000015"))
    assert exact.returncode == 2 and "has 1000 bytes but was saved with" in exact.stderr
    survived = train(config)
    assert survived.returncode == 0, survived.stderr
    assert "warning: skipped an unusable checkpoint: " in survived.stderr
    assert "continuing at step 10" in survived.stdout
    for output in (refused, overwriting, missing, other_shapes, early, older, exact):
        assert len(output.stderr.strip().splitlines()) == 1, output.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run_mode", "predict"], "this program only trains; export the checkpoint"),
        (["--use_parallel", "True"], "start with bash scripts/msrun_launcher.sh"),
        (["--train_dataset_dir", "nowhere"], "no packed dataset here"),
        (["--load_checkpoint", "nowhere"], "are both set; keep one"),
        (["--set", "cpt.init_from=nowhere"], "no such checkpoint"),
        (["--set", "cpt.init_from=null"], "no initial weights"),
        (["--set", "cpt.global_batch=8"], "unknown key; did you mean 'global_batch_size'"),
        (["--set", "cpt.seq_length=128"], "packed with sequence length 64, but cpt.seq_length is 128"),
        (["--set", "model.model_config.vocab_size=500"], "tokenizer of 512 entries, but the model has vocab_size 500"),
        (["--set", "parallel_config.model_parallel=2"], "supports only data parallelism"),
        (["--output_dir", "/proc/nowhere"], "cannot be written"),
        (["--world-size", "4"], "needs --dry-run"),
        (["--dry-run", "--assume", "nothing=1B"], "--assume nothing: no such source"),
    ],
)
def test_bad_input_gives_a_one_line_error(
    write_config: Callable[..., Path], train: Callable[..., Completed], arguments: list[str], message: str
) -> None:
    result = train(write_config(validation=None), *arguments)
    assert result.returncode == 2, result.stdout + result.stderr
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1 and "Traceback" not in result.stderr


def test_empty_folder_and_missing_shard(
    write_config: Callable[..., Path], train: Callable[..., Completed], packed: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    result = train(write_config(), "--train_dataset", str(empty))
    assert result.returncode == 2 and "contains no packed dataset" in result.stderr
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in packed.parent.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    next(copy.glob("*.mindrecord1")).unlink()
    result = train(write_config(), "--train_dataset_dir", str(copy))
    assert result.returncode == 2 and "mindrecord1: missing" in result.stderr


def test_dry_run_plans_a_cluster_and_only_writes_a_plot(
    write_config: Callable[..., Path], train: Callable[..., Completed], tmp_path: Path
) -> None:
    result = train(write_config(), "--dry-run", "--world-size", "4")
    assert result.returncode == 0
    assert "4 devices = data 4" in result.stdout and "20 steps = 10.2K tokens" in result.stdout
    assert [path for path in (tmp_path / "output").rglob("*") if path.is_file()] == [tmp_path / "output/run/plan.png"]


@pytest.mark.parametrize("family", ["llama2", "llama3", "qwen2"])
def test_other_families_train(
    family: str, write_config: Callable[..., Path], train: Callable[..., Completed], tmp_path: Path
) -> None:
    result = train(write_config(family), "--stop-at-step", "5")
    assert result.returncode == 0, result.stderr
    losses = [record[2] for record in read_history(tmp_path / "output/run") if record[0] == "step"]
    assert len(losses) == 5 and losses[-1] < losses[0]


def test_two_workers_and_two_nodes_give_the_same_losses_and_resume_exactly(
    write_config: Callable[..., Path],
    launch: Callable[..., Completed],
    launch_nodes: Callable[..., list[Completed]],
    tmp_path: Path,
    free_ports: list[int],
) -> None:
    whole = launch(write_config(run_name="whole"), port=free_ports[0], log_dir=tmp_path / "log_whole")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    assert "2 devices = data 2" in whole.stdout and "step 20/20" in whole.stdout
    config = write_config(run_name="stopped")
    stopped = launch(config, "--stop-at-step", "7", port=free_ports[1], log_dir=tmp_path / "log_a")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    # Resumed on two nodes with one worker each: the same losses as on one node with two workers.
    nodes = launch_nodes(config, port=free_ports[2], log_dir=tmp_path / "log_b")
    assert [node.returncode for node in nodes] == [0, 0], "".join(node.stdout + node.stderr for node in nodes)
    assert "continuing at step 7" in nodes[0].stdout
    assert drop_validation_at(read_history(tmp_path / "output/stopped"), 7) == read_history(tmp_path / "output/whole")


def test_the_number_of_workers_may_change_between_launches(
    write_config: Callable[..., Path],
    train: Callable[..., Completed],
    launch: Callable[..., Completed],
    tmp_path: Path,
    free_port: int,
) -> None:
    """1 → 2 → 1 processes: the same losses up to rounding, and every change is printed and recorded."""
    whole = train(write_config(run_name="whole", validation=None), "--stop-at-step", "12")
    assert whole.returncode == 0, whole.stderr
    config = write_config(run_name="changed", validation=None)
    first = train(config, "--stop-at-step", "4")
    two = launch(config, "--stop-at-step", "8", port=free_port, log_dir=tmp_path / "log")
    one = train(config, "--stop-at-step", "12", "--reshard")
    assert [result.returncode for result in (first, two, one)] == [0, 0, 0], two.stderr + one.stderr
    assert "new parallel layout" not in first.stdout
    assert "note     new parallel layout from step 4 on: data_parallel: 1 → 2\n" in two.stdout
    assert "note     new parallel layout from step 8 on: data_parallel: 2 → 1\n" in one.stdout
    expected, found = (read_history(tmp_path / "output" / name) for name in ("whole", "changed"))
    assert [record[:2] for record in found] == [record[:2] for record in expected]
    assert [record[2] for record in found] == pytest.approx([record[2] for record in expected], abs=1e-4)
    layouts = json.loads((tmp_path / "output/changed/run.json").read_text())["layouts"]
    assert [(layout["step"], layout["data_parallel"]) for layout in layouts] == [(0, 1), (4, 2), (8, 1)]
    assert "from step 5: data 2, from step 9: 1 device" in (tmp_path / "output/changed/report.html").read_text()


def test_error_under_the_launcher_has_exit_code_2(
    write_config: Callable[..., Path], launch: Callable[..., Completed], tmp_path: Path, free_ports: list[int]
) -> None:
    result = launch(write_config(global_batch_size=7), port=free_ports[0], log_dir=tmp_path / "log")
    assert result.returncode == 2, result.stdout + result.stderr
    assert "global_batch_size 7 is not divisible by data_parallel 2" in result.stdout + result.stderr


@pytest.mark.parametrize("family", ["qwen3", pytest.param("llama3", marks=pytest.mark.slow)])
def test_run_from_a_hugging_face_folder(
    family: str, write_config: Callable[..., Path], train: Callable[..., Completed], tmp_path: Path
) -> None:
    first = train(write_config(family, run_name="first"), "--stop-at-step", "5")
    assert first.returncode == 0, first.stderr
    exported = tmp_path / "exported"
    convert = [sys.executable, "tools/convert_weights.py", "to-hf", str(tmp_path / "output/first"), str(exported)]
    result = run_command(convert)
    assert result.returncode == 0, result.stdout + result.stderr
    second = train(write_config(family, run_name="second", init_from=str(exported)), "--stop-at-step", "1")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "none missing, none unexpected" in second.stdout
    before = [record[2] for record in read_history(tmp_path / "output/first") if record[0] == "validation"][-1]
    after = read_history(tmp_path / "output/second")[0][2]
    assert after == pytest.approx(before, abs=1e-5)
    other = train(
        write_config(family, run_name="third", init_from=str(exported)), "--set", "model.model_config.hidden_size=128"
    )
    assert other.returncode == 2 and "hidden_size is 64 in config.json and 128" in other.stderr
