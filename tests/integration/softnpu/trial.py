"""Trains a layout on the software NPU: undisturbed; and killed, resumed, gathered and exported on two nodes."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ascend_cpt.rehearsal.emulated_job import EmulatedJob
from ascend_cpt.run.trained_model import open_trained
from ascend_cpt.weights.hf_folder import HfFolder
from tests.integration.conftest import make_sections, read_history, run_command
from tests.integration.softnpu.layouts import SHORT_ROWS, Layout, Reference

NUM_STEPS = 6
TOTAL_STEPS = 20
KILL_AFTER_STEP = 2
TIMEOUT_S = 560


@dataclass(frozen=True)
class CpuRun:
    """What the emulated runs start from, and what they are compared with."""

    start: Path
    start_hf: Path
    run: Path


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Differences of an emulated run from the CPU's.

    Shares are those of elements whose update since the start differs by more than a tenth of it.
    """

    loss_difference: float
    validation_difference: float
    share_after_step_1: float
    share_at_the_end: float


def write(folder: Path, name: str, sections: dict[str, Any]) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(sections, sort_keys=False), encoding="utf-8")
    return path


def describe_run(dataset: Path, folder: Path, reference: Reference, bases: Sequence[Path] = (), **cpt: Any) -> Path:
    """Write the configuration of a run whose output is in `folder`/output, with further base configurations."""
    batch, length = reference.global_batch_size, reference.seq_length
    sections = make_sections(
        dataset,
        folder / "output",
        reference.family,
        **{
            "seq_length": length,
            "global_batch_size": batch,
            "train_tokens": TOTAL_STEPS * batch * length,
            "schedule": {"peak_lr": 1e-3, "final_lr": 1e-4, "warmup_tokens": 4 * batch * length},
            "validation": {
                "max_rows": 10 if length == SHORT_ROWS else 4,
                "every": "3 steps",
                "sets": {"held": {"path": str(dataset)}},
            },
            "checkpoint": {"every": "1 steps", "keep_last": 0},
            **reference.cpt,
            **cpt,
        },
    )
    sections["model"]["model_config"]["max_position_embeddings"] = max(256, length)
    sections["model"]["model_config"] |= reference.sections.get("model", {}).get("model_config", {})
    sections["base_config"] += [str(write(folder, "reference", reference.sections)), *map(str, bases)]
    return write(folder, "run", sections)


def make_reference(folder: Path, dataset: Path, reference: Reference) -> CpuRun:
    """Train the start's two steps and the six of the reference on the CPU."""

    def train(name: str, stop: int, **cpt: Any) -> Path:
        (folder / name).mkdir(parents=True)
        config = describe_run(dataset, folder / name, reference, **cpt)
        command = [sys.executable, "run_cpt.py", "--config", str(config), "--stop-at-step", str(stop)]
        check(run_command(command, timeout_s=TIMEOUT_S))
        return folder / name / "output/run"

    # All weights of the start differ from their initial values, so that frozen weights that are not loaded are seen.
    whole = {"trainable": ["*"]} if "trainable" in reference.cpt else {}
    start = train("start", 2, validation=None, lora=None, **whole)
    export(start, folder / "start_hf", merge=False)
    return CpuRun(start, folder / "start_hf", train("cpu", NUM_STEPS, init_from=str(start)))


def check(result: subprocess.CompletedProcess[str]) -> None:
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-6000:]


def export(run: Path, target: Path, *, merge: bool) -> None:
    options = ["--merge"] if merge else []
    check(run_command([sys.executable, "tools/convert_weights.py", "to-hf", str(run), str(target), *options]))


def describe_layout(layout: Layout, dataset: Path, folder: Path, init_from: Path, **cpt: Any) -> Path:
    """Write the configuration of a layout in `folder`, which is created."""
    folder.mkdir(parents=True)
    base = write(folder, "layout", layout.make_sections())
    return describe_run(dataset, folder, layout.reference, [base], init_from=str(init_from), **cpt)


def train_whole(layout: Layout, cpu: CpuRun, dataset: Path, folder: Path) -> Path:
    """Train the layout undisturbed from the run folder of the start, and return its run folder."""
    config = describe_layout(layout, dataset, folder, cpu.start)
    job = EmulatedJob(config, folder, workers=layout.workers, timeout_s=TIMEOUT_S)
    job.start("--stop-at-step", str(NUM_STEPS))
    job.expect_success()
    return job.list_run_dirs("run")[0]


def try_layout(layout: Layout, cpu: CpuRun, dataset: Path, folder: Path) -> Outcome:
    """Train the layout undisturbed from the run folder, then from the Hugging Face folder on two nodes, and compare."""
    whole_run = train_whole(layout, cpu, dataset, folder / "whole")
    outcome = compare_runs(layout, cpu, whole_run)

    # Everything else at once: another start, own shards on two nodes, background saving, kill -9, resume.
    saving = {"every": "1 steps", "keep_last": 0, "background": True}
    config = describe_layout(
        layout, dataset, folder / "parts", cpu.start_hf, checkpoint=saving, storage={"shared": False}
    )
    parts = EmulatedJob(config, folder / "parts", num_nodes=2, workers=layout.workers, timeout_s=TIMEOUT_S)
    parts.start("--stop-at-step", str(NUM_STEPS))
    parts.kill_worker_after(KILL_AFTER_STEP, "run")
    assert all(parts.finish()), "a node did not notice that a worker was killed"
    parts.start("--stop-at-step", str(NUM_STEPS))
    parts.expect_success()
    assert "continuing at step" in parts.read_console()
    part_runs = parts.list_run_dirs("run")
    for run in part_runs:
        assert read_history(run) == read_history(whole_run)

    gathered = folder / "gathered"
    tool = [sys.executable, "tools/gather_checkpoint.py", *map(str, part_runs), "--output", str(gathered)]
    check(run_command(tool))
    merge = "lora" in layout.reference.cpt
    export(whole_run, folder / "whole_hf", merge=merge)
    export(gathered, folder / "parts_hf", merge=merge)
    expected, found = (read_exported(folder / name) for name in ("whole_hf", "parts_hf"))
    assert expected.keys() == found.keys()
    assert all(np.array_equal(expected[name], found[name]) for name in expected)
    return outcome


def read_losses(run_dir: Path) -> dict[tuple[str, int], float]:
    return {(kind, step): loss for kind, step, loss, *_ in read_history(run_dir)}


def read_trained(folder: Path) -> dict[str, np.ndarray]:
    source = open_trained(folder).source
    return {name: np.asarray(source.read(name), np.float64) for name in source.tensors}


def read_exported(folder: Path) -> dict[str, np.ndarray]:
    source = HfFolder(folder)
    return {name: np.asarray(source.read(name)) for name in source.tensors}


def compare_runs(layout: Layout, cpu: CpuRun, run: Path) -> Outcome:
    """Compare losses, held-out losses and weights of an emulated run with the CPU's."""
    expected, found = read_losses(cpu.run), read_losses(run)
    wanted = list(expected)
    assert [key for key in wanted if key[0] == "step"] == [("step", step) for step in range(1, NUM_STEPS + 1)]
    assert set(found) == set(wanted)
    differences = {key: abs(found[key] - expected[key]) for key in wanted}
    assert all(math.isfinite(value) for value in differences.values())
    step_1 = "checkpoint/iteration_00000001"
    return Outcome(
        loss_difference=max(value for key, value in differences.items() if key[0] == "step"),
        validation_difference=max((value for key, value in differences.items() if key[0] != "step"), default=math.nan),
        share_after_step_1=share_of_other_updates(cpu.start, cpu.run / step_1, run / step_1),
        share_at_the_end=share_of_other_updates(cpu.start, cpu.run, run),
    )


def share_of_other_updates(start: Path, expected: Path, found: Path) -> float:
    """Return the share of elements whose update differs by more than a tenth of it, over all weights."""
    first, want, have = (read_trained(folder) for folder in (start, expected, found))
    assert want.keys() == have.keys() == first.keys()
    wrong = total = 0
    for name, before in first.items():
        update = want[name] - before
        wrong += int(np.sum(np.abs(have[name] - want[name]) > 0.1 * np.abs(update) + 1e-7))
        total += before.size
    return wrong / total
