"""cpt.export and keep_best in real runs on the CPU: train, keep the best, export at the end, run again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ascend_cpt.monitor.history import read_values
from ascend_cpt.run.export.target import read_record
from tests.integration.conftest import TASKS, run_command

Completed = subprocess.CompletedProcess[str]


def list_steps(run: Path) -> list[int]:
    return sorted(int(path.name[-8:]) for path in (run / "checkpoint").glob("iteration_*"))


def make_changes(packed: Path, target: Path) -> dict[str, object]:
    """Return the keys of a run that is best at step 5: its learning rate rises far too high."""
    return {
        "schedule": {"peak_lr": 10.0, "final_lr": 9.0, "warmup_share": 0.9},
        "validation": {"every": "5 steps", "max_rows": 10, "sets": {"held": {"path": str(packed)}}},
        "checkpoint": {"every": "5 steps", "keep_last": 1, "keep_best": {"set": "held", "n": 1}, "background": True},
        "export": {"when": "end", "to": str(target), "checkpoint": "best"},
    }


def test_train_keep_the_best_export_and_run_again(
    write_config: Callable[..., Path], train: Callable[..., Completed], packed: Path, tmp_path: Path
) -> None:
    run, target = tmp_path / "output/run", tmp_path / "exported"
    config = write_config(**make_changes(packed, target))

    target.mkdir()
    (target / "README.md").write_text("mine", encoding="utf-8")
    refused = train(config)
    assert refused.returncode == 2 and "already exists and is not an export of this run" in refused.stderr
    shutil.rmtree(target)

    stopped = train(config, "--stop-at-step", "15")
    assert stopped.returncode == 0, stopped.stderr
    assert not target.exists() and "export   the best checkpoint to" in stopped.stdout
    done = train(config)
    assert done.returncode == 0, done.stdout + done.stderr
    losses = {
        record["step"]: record["loss"]
        for record in map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        if record["kind"] == "validation"
    }
    best = min((step for step in losses if step), key=lambda step: losses[step])
    assert best == 5, losses
    assert list_steps(run) == [best, 20]
    assert (run / "best").read_text(encoding="utf-8") == f"iteration_{best:08d}\n"
    assert "export   verified against" in done.stdout and "logits of MindFormers' network" in done.stdout
    card = (target / "README.md").read_text(encoding="utf-8")
    assert f"after step {best} of 20" in card and f"| {losses[best]:.4f} |" in card
    assert f"{losses[20]:.4f}" not in card
    record = read_record(run)
    assert record is not None and (record.step, record.verified) == (best, True)

    # RUN/best is accepted by the tools, and by init_from: it starts with the recorded loss of that step.
    verify = [sys.executable, "tools/convert_weights.py", "verify", str(target), "--against", str(run / "best")]
    assert run_command([*verify, "--no-logits"]).returncode == 0
    following = train(write_config(run_name="next", init_from=str(run / "best")), "--stop-at-step", "1")
    assert following.returncode == 0, following.stderr
    first = json.loads((tmp_path / "output/next/metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert first["loss"] == pytest.approx(losses[best], rel=1e-5)
    info = json.loads((tmp_path / "output/next/run.json").read_text(encoding="utf-8"))
    assert info["base"] == {"kind": "run", "name": "run", "step": best}

    again = train(config)
    assert again.returncode == 0 and "already exported and verified" in again.stdout
    shutil.rmtree(target)
    only_export = train(config)
    assert only_export.returncode == 0, only_export.stderr
    assert "already complete at step 20" in only_export.stdout and "export   verified against" in only_export.stdout
    assert (target / "model.safetensors").is_file() and "step 20/20" not in only_export.stdout


def test_best_by_a_task_is_kept_and_its_card_has_the_scores(
    write_config: Callable[..., Path], train: Callable[..., Completed], packed: Path, tokenizer: Path, tmp_path: Path
) -> None:
    run, target = tmp_path / "output/run", tmp_path / "exported"
    task = {"path": str(TASKS / "plain_choices.jsonl"), "kind": "multiple_choice", "metric": "bits_per_byte"}
    changes = make_changes(packed, target)
    changes |= {
        "validation": {"every": "5 steps", "tokenizer": str(tokenizer), "tasks": {"choices": task}},
        "checkpoint": {"every": "5 steps", "keep_last": 1, "keep_best": {"task": "choices"}},
    }
    done = train(write_config(**changes))
    assert done.returncode == 0, done.stdout + done.stderr
    scores = read_values(run / "metrics.jsonl", "task", "choices")
    best = min((step for step in scores if step), key=lambda step: scores[step])
    assert best == 5, scores
    assert (run / "best").read_text(encoding="utf-8") == f"iteration_{best:08d}\n" and list_steps(run) == [best, 20]
    card = (target / "README.md").read_text(encoding="utf-8")
    before, after = scores[0], scores[best]
    assert f"| choices | bits_per_byte | {before:.4f} (step 0) | {after:.4f} | {after - before:+.4f} |" in card


@pytest.mark.slow
def test_under_the_launcher_one_worker_exports_and_a_failure_is_not_restarted(
    write_config: Callable[..., Path],
    launch: Callable[..., Completed],
    tmp_path: Path,
    free_ports: list[int],
) -> None:
    target = tmp_path / "folder/exported"
    like = tmp_path / "tokenizer"
    like.mkdir()
    (like / "tokenizer.json").write_text("{}", encoding="utf-8")
    config = write_config(validation=None, export={"to": str(target), "like": str(like)})
    environment = {"ASCEND_CPT_MAX_RESTARTS": "3"}
    done = launch(config, port=free_ports[0], log_dir=tmp_path / "log_a", env=environment)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "step 20/20" in output and output.count("export   verified against") == 1
    assert {path.name for path in target.iterdir()} >= {"model.safetensors", "tokenizer.json", "README.md"}

    # A name that is too long for the temporary one made from it: this is found only when the export is written.
    change = ["--set", f"cpt.export.to={target.parent / ('x' * 250)}"]
    failed = launch(config, *change, port=free_ports[1], log_dir=tmp_path / "log_b", env=environment)
    output = failed.stdout + failed.stderr
    assert failed.returncode == 1, output
    assert "already complete at step 20" in output and "restart 1 of" not in output
    assert "error: the run is complete, but its export to" in output
    assert f"to repeat it: python tools/convert_weights.py to-hf {tmp_path}/output/run/checkpoint" in output
