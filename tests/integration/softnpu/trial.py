"""Trains a layout on the software NPU: undisturbed; and killed, resumed, gathered and exported on two nodes."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml

from ascend_cpt.checkpoint.locate import list_complete
from ascend_cpt.run.trained_model import open_trained
from ascend_cpt.weights.hf_folder import HfFolder
from tests.integration.conftest import REPOSITORY, make_sections, read_history, run_command
from tests.integration.softnpu.layouts import SHORT_ROWS, Layout, Reference
from tests.integration.test_soak import read_role
from tests.ports import find_free_port

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

    start = train("start", 2, validation=None)
    export(start, folder / "start_hf")
    return CpuRun(start, folder / "start_hf", train("cpu", NUM_STEPS, init_from=str(start)))


def check(result: subprocess.CompletedProcess[str]) -> None:
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-6000:]


def export(run: Path, target: Path) -> None:
    check(run_command([sys.executable, "tools/convert_weights.py", "to-hf", str(run), str(target)]))


class EmulatedJob:
    """A job on emulated NPUs, on one node or on two with their own output folders."""

    def __init__(self, config: Path, folder: Path, num_nodes: int, workers: int) -> None:
        self.run_dirs = [folder / f"node{node}/output/run" for node in range(num_nodes)]
        self._config, self._folder, self._workers = config, folder, workers
        self._launches: list[subprocess.Popen[bytes]] = []
        self._attempt = 0

    def start(self, *arguments: str) -> None:
        """Launch every node."""
        self._attempt += 1
        port, num_nodes = find_free_port(), len(self.run_dirs)
        variables = {"ASCEND_CPT_SOFTNPU": "1", "SOFTNPU_THREADS": "1", "ASCEND_CPT_ALLOW_LOCAL_MASTER": "1"}
        environment = {**os.environ, **variables, "ASCEND_CPT_PYTHON": sys.executable}
        self._launches = []
        for node in range(num_nodes):
            folder = self._folder / f"node{node}"
            folder.mkdir(parents=True, exist_ok=True)
            words = f"run_cpt.py --config {self._config} --output_dir {folder / 'output'} {' '.join(arguments)}"
            logs = str(folder / f"log_{self._attempt}")
            form = [str(self._workers), str(port), logs, "False", "300"]
            if num_nodes > 1:
                local = str(self._workers // num_nodes)
                form = [str(self._workers), local, "127.0.0.1", str(port), str(node), logs, "False", "300"]
            with (folder / f"console_{self._attempt}").open("wb") as console:
                self._launches.append(
                    subprocess.Popen(
                        ["bash", "scripts/msrun_launcher.sh", words, *form],
                        cwd=REPOSITORY,
                        env=environment,
                        stdout=console,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )

    def finish(self) -> list[int]:
        """Wait for all nodes and return their exit codes."""
        deadline = time.monotonic() + TIMEOUT_S
        try:
            return [launch.wait(max(deadline - time.monotonic(), 1)) for launch in self._launches]
        finally:
            for launch in self._launches:
                if launch.poll() is None:
                    os.killpg(launch.pid, signal.SIGKILL)

    def kill_worker_after(self, step: int) -> None:
        """SIGKILL a worker of the last node as soon as the checkpoint of `step` is complete on every node."""
        deadline = time.monotonic() + TIMEOUT_S
        while not all(step in list_complete(run / "checkpoint")[0] for run in self.run_dirs):
            assert all(launch.poll() is None for launch in self._launches), self.read_console()
            assert time.monotonic() < deadline, self.read_console()
            time.sleep(0.05)
        _find_worker(self._launches[-1].pid).kill()

    def read_console(self) -> str:
        return "\n".join(
            (self._folder / f"node{node}/console_{self._attempt}").read_text(errors="replace")[-6000:]
            for node in range(len(self.run_dirs))
        )


def _find_worker(launcher: int) -> psutil.Process:
    processes = psutil.Process(launcher).children(recursive=True)
    return next(process for process in processes if read_role(process) == "MS_WORKER")


def try_layout(layout: Layout, cpu: CpuRun, dataset: Path, folder: Path) -> Outcome:
    """Train the layout undisturbed from the run folder, then from the Hugging Face folder on two nodes, and compare."""
    changes: dict[str, Any] = {} if layout.has_validation else {"validation": None}

    def describe(name: str, init_from: Path, **cpt: Any) -> Path:
        (folder / name).mkdir(parents=True)
        base = write(folder / name, "layout", layout.make_sections())
        return describe_run(
            dataset, folder / name, layout.reference, [base], init_from=str(init_from), **cpt, **changes
        )

    whole = EmulatedJob(describe("whole", cpu.start), folder / "whole", 1, layout.workers)
    whole.start("--stop-at-step", str(NUM_STEPS))
    assert whole.finish() == [0], whole.read_console()
    outcome = compare_runs(layout, cpu, whole.run_dirs[0])

    # Everything else at once: another start, own shards on two nodes, background saving, kill -9, resume.
    saving = {"every": "1 steps", "keep_last": 0, "background": True}
    config = describe("parts", cpu.start_hf, checkpoint=saving, storage={"shared": False})
    parts = EmulatedJob(config, folder / "parts", 2, layout.workers)
    parts.start("--stop-at-step", str(NUM_STEPS))
    parts.kill_worker_after(KILL_AFTER_STEP)
    assert all(parts.finish()), "a node did not notice that a worker was killed"
    parts.start("--stop-at-step", str(NUM_STEPS))
    assert parts.finish() == [0, 0], parts.read_console()
    assert "continuing at step" in parts.read_console()
    for run in parts.run_dirs:
        assert read_history(run) == read_history(whole.run_dirs[0])

    gathered = folder / "gathered"
    tool = [sys.executable, "tools/gather_checkpoint.py", *map(str, parts.run_dirs), "--output", str(gathered)]
    check(run_command(tool))
    export(whole.run_dirs[0], folder / "whole_hf")
    export(gathered, folder / "parts_hf")
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
    wanted = [key for key in expected if key[0] == "step" or layout.has_validation]
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
