"""Runs a small version of a cluster job on emulated NPUs (train, save, kill, resume, export) and on one device."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from ascend_cpt.checkpoint.locate import list_complete
from ascend_cpt.config.loader import RunConfig
from ascend_cpt.monitor.history import read_metrics
from ascend_cpt.processes import die_with_parent
from ascend_cpt.rehearsal.dataset import Vocabulary, make_dataset
from ascend_cpt.rehearsal.emulated_job import REPOSITORY, EmulatedJob, JobFailed
from ascend_cpt.rehearsal.shrink import HUGGING_FACE, Rehearsal, compute_in_float32, shrink, shrink_to_one_device
from ascend_cpt.rehearsal.shrink_model import EOD_ID, PAD_ID, VOCAB_SIZE
from ascend_cpt.rehearsal.shrink_recipe import NUM_STEPS, RUN_NAME, SAVE_EVERY_STEPS, VALIDATION_ROWS
from ascend_cpt.rehearsal.steps import RehearsalFailed, StepList
from ascend_cpt.rehearsal.user_run import resolve_user_run
from ascend_cpt.rehearsal.weights import write_random_folder
from ascend_cpt.softnpu.environment import SWITCH, prepare
from ascend_cpt.weights.dtypes import to_float32
from ascend_cpt.weights.hf_folder import HfFolder

BUILD, DATA, WEIGHTS = "build the software NPU", "data", "weights"
TRAIN, KILL, RESUME = "start, train and save", "kill a worker", "resume"
ONE, LOSSES, HELD_OUT = "train on one device", "losses", "held-out losses"
EXPORT, VERIFY, COMPARE = "export", "verify", "exported weights"
STEPS = (BUILD, DATA, WEIGHTS, TRAIN, KILL, RESUME, ONE, LOSSES, HELD_OUT, EXPORT, VERIFY, COMPARE)
SEED = 1
# In float32. Rounding can flip the sign of Adam's first updates where a gradient is almost 0. A wrong update gives
# about 1.
MAX_LOSS_DIFFERENCE, MAX_UPDATE_DIFFERENCE, MAX_TENSOR_DIFFERENCE = 1e-4, 0.1, 0.5
_LOGITS = re.compile(r"differ by at most (\S+) of their standard deviation")


def rehearse(
    config: RunConfig,
    folder: Path,
    *,
    max_processes: int,
    num_nodes: int | None,
    devices_per_node: int,
    timeout_s: float,
    report: Callable[[str], None],
) -> StepList:
    """Rehearse a configuration in `folder`, which is created, and return the results of all steps.

    Args:
        config: The user's configuration. Its data and weights need not exist.
        folder: Folder for data, weights, runs and logs.
        max_processes: Maximum number of emulated devices.
        num_nodes: Number of nodes in the user's cluster, or None for as many as the layout needs.
        devices_per_node: Number of devices per node in the user's cluster.
        timeout_s: Time limit of each launch.
        report: Called with progress lines.

    Raises:
        ConfigError: when the configuration is for a CPU or is invalid.
        DataError, CheckpointError: when the user's data or weights exist here but do not fit the configuration.
        ClusterError: when this machine cannot emulate NPUs, or `max_processes` is too small.
    """
    rehearsal = compute_in_float32(shrink(resolve_user_run(config, num_nodes, devices_per_node), max_processes))
    report(f"{rehearsal.layout.world_size} emulated devices; differences from {config.path}:")
    for change in rehearsal.changes:
        report(f"  {change}")
    steps = StepList(STEPS, report)
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(RehearsalFailed):
        _run_steps(_Work(rehearsal, folder, timeout_s), steps)
    return steps


class _Work:
    """A rehearsal's folder, and the results that its steps share."""

    def __init__(self, rehearsal: Rehearsal, folder: Path, timeout_s: float) -> None:
        self.rehearsal, self.folder, self.timeout_s = rehearsal, folder, timeout_s
        self.start = folder / "start_hf"
        self.cpt: dict[str, Any] = copy.deepcopy(rehearsal.sections["cpt"])
        self.cpt["init_from"] = str(self.start)

    def make_job(self, name: str, rehearsal: Rehearsal) -> EmulatedJob:
        """Return a rehearsal job that uses this folder's data and weights."""
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**rehearsal.sections, "cpt": self.cpt}, sort_keys=False), encoding="utf-8")
        workers = rehearsal.layout.world_size
        return EmulatedJob(path, self.folder / name, workers=workers, timeout_s=self.timeout_s)


def _run_steps(work: _Work, steps: StepList) -> None:
    rehearsal = work.rehearsal
    with steps.run(BUILD, is_preparation=True):
        prepare({SWITCH: "1"})
    with steps.run(DATA, is_preparation=True) as step:
        step.note = make_datasets(work.cpt, rehearsal, work.folder / "data")
    with steps.run(WEIGHTS) as step:
        write_random_folder(rehearsal.model, work.start, seed=SEED)
        step.note = "random, in a Hugging Face folder" + (
            "" if rehearsal.starts_from == HUGGING_FACE else f"; the configuration starts from: {rehearsal.starts_from}"
        )
    many = work.make_job("many", rehearsal)
    (run_dir,) = many.list_run_dirs(RUN_NAME)
    with steps.run(TRAIN):
        many.start()
        many.kill_worker_after(SAVE_EVERY_STEPS, RUN_NAME)
    with steps.run(KILL):
        if many.finish() == [0]:
            raise JobFailed("the job ended with exit code 0 although a worker was killed")
    with steps.run(RESUME) as step:
        newest, before = max(list_complete(run_dir / "checkpoint")[0]), read_losses(run_dir, "step")
        many.start()
        many.expect_success()
        _check_resumed(many.read_console(), newest, before, read_losses(run_dir, "step"))
        step.note = f"from step {newest} to step {NUM_STEPS}"
    one = work.make_job("one", shrink_to_one_device(rehearsal))
    with steps.run(ONE):
        one.start()
        one.expect_success()
    _compare(work, steps, run_dir, one.list_run_dirs(RUN_NAME)[0])


def _compare(work: _Work, steps: StepList, many: Path, one: Path) -> None:
    with steps.run(LOSSES) as step:
        found, expected = (read_losses(run, "step") for run in (many, one))
        step.difference = _check_losses(found, expected, NUM_STEPS, MAX_LOSS_DIFFERENCE)
    if work.cpt.get("validation"):
        with steps.run(HELD_OUT) as step:
            found, expected = (read_losses(run, "validation") for run in (many, one))
            step.difference = _check_losses(found, expected, 1, MAX_LOSS_DIFFERENCE)
    else:
        steps.skip(HELD_OUT, "the configuration has none")
    exported = {name: work.folder / f"{name}_hf" for name in ("many", "one")}
    with steps.run(EXPORT):
        for run, name in ((many, "many"), (one, "one")):
            _run_tool("convert_weights.py", "to-hf", str(run), str(exported[name]))
    with steps.run(VERIFY) as step:
        output = _run_tool("convert_weights.py", "verify", str(exported["many"]), "--against", str(many))
        if logits := _LOGITS.search(output):
            step.difference = f"{logits[1]} of the logits' standard deviation"
    with steps.run(COMPARE) as step:
        found_update = compare_updates(work.start, exported["many"], exported["one"])
        step.difference = f"{found_update.overall:.1e} times the change since the start"
        step.note = f"largest in {found_update.worst_name}: {found_update.worst:.1e} times its change"
        _check_update(found_update)


def _check_update(found: UpdateDifference) -> None:
    """Raise JobFailed if weights differ by more than rounding. Small tensors hardly affect the overall norm."""
    for what, value, limit in (
        ("the weights differ", found.overall, MAX_UPDATE_DIFFERENCE),
        (f"{found.worst_name} differs", found.worst, MAX_TENSOR_DIFFERENCE),
    ):
        if not value <= limit:
            raise JobFailed(
                f"{what} from the run on one device by {value:.2f} times the change since the start; rounding explains "
                f"at most {limit}"
            )


def make_datasets(cpt: dict[str, Any], rehearsal: Rehearsal, folder: Path) -> str:
    """Write a small dataset per source and validation set, set the paths in `cpt`, and return the datasets' origins."""
    vocabulary = Vocabulary(size=VOCAB_SIZE, eod_id=EOD_ID, pad_id=PAD_ID)
    batch = rehearsal.global_batch_size
    entries: list[tuple[str, dict[str, Any], int]] = [
        (name, entry, (NUM_STEPS + 1) * batch) for name, entry in (cpt.get("sources") or {}).items()
    ]
    sets = (cpt.get("validation") or {}).get("sets") or {}
    entries += [(f"validation_{name}", entry, max(VALIDATION_ROWS, batch)) for name, entry in sets.items()]
    origins = []
    for name, entry, num_rows in entries:
        prefix = folder / f"{name}_text_document"
        manifest = make_dataset(
            str(entry["path"]),
            prefix,
            num_rows=num_rows,
            seq_length=rehearsal.seq_length,
            vocabulary=vocabulary,
            seed=SEED,
        )
        entry["path"] = str(prefix)
        origins.append(f"{name} from {manifest.settings['origin']}")
    return "; ".join(origins)


def read_losses(run_dir: Path, kind: str) -> dict[tuple[int, str], float]:
    """Return the losses from records of one kind, by (step, validation set)."""
    records = read_metrics(run_dir / "metrics.jsonl")
    return {(r["step"], r.get("name", "")): float(r["loss"]) for r in records if r["kind"] == kind}


def _check_losses(
    found: dict[tuple[int, str], float], expected: dict[tuple[int, str], float], at_least: int, limit: float
) -> str:
    """Return the largest difference as text. Raise JobFailed if it exceeds the limit or the records differ."""
    if found.keys() != expected.keys() or len(found) < at_least:
        raise JobFailed(f"found records of steps {sorted(found)}, but the run on one device has {sorted(expected)}")
    key = max(found, key=lambda key: _distance(found[key], expected[key]))
    difference = _distance(found[key], expected[key])
    if not difference <= limit:
        raise JobFailed(
            f"step {key[0]} {key[1]}: {found[key]:.6f}, but {expected[key]:.6f} on one device; rounding explains at "
            f"most {limit}"
        )
    return f"{difference:.1e}"


def _distance(first: float, second: float) -> float:
    return abs(first - second) if math.isfinite(first) and math.isfinite(second) else math.inf


def _check_resumed(
    console: str, step: int, before: dict[tuple[int, str], float], after: dict[tuple[int, str], float]
) -> None:
    """Raise JobFailed if a job did not resume from `step`, or repeated pre-kill steps with different losses.

    A job that restarts from the weights has the same losses as one that resumes, so the output is checked as well.
    """
    if f"continuing at step {step} " not in console:
        raise JobFailed(f"the job did not resume from step {step}, its newest checkpoint")
    changed = sorted(key[0] for key, loss in before.items() if after.get(key) != loss)
    if changed:
        raise JobFailed(f"the losses of steps {changed} changed when the job was resumed")


@dataclass(frozen=True, kw_only=True)
class UpdateDifference:
    """How far two runs' weights differ, relative to how far training moved them."""

    overall: float
    worst: float
    """For the tensor with the largest difference."""
    worst_name: str


def compare_updates(start: Path, found: Path, expected: Path) -> UpdateDifference:
    """Return ‖found - expected‖ / ‖expected - start‖ for three Hugging Face folders."""
    first, have, want = (HfFolder(folder) for folder in (start, found, expected))
    squares: dict[str, tuple[float, float]] = {}
    for name in want.tensors:
        before, one, many = (_read(folder, name) for folder in (first, want, have))
        squares[name] = float(np.square(many - one).sum()), float(np.square(one - before).sum())
    ratios = {name: _divide(*pair) for name, pair in squares.items()}
    worst = max(ratios, key=lambda name: ratios[name])
    apart, change = (sum(pair[part] for pair in squares.values()) for part in (0, 1))
    return UpdateDifference(overall=_divide(apart, change), worst=ratios[worst], worst_name=worst)


def _divide(apart: float, change: float) -> float:
    """Return the ratio of two norms, given their squares, or infinity if nothing changed or a value is not finite."""
    return math.sqrt(apart / change) if math.isfinite(apart + change) and change else math.inf


def _read(folder: HfFolder, name: str) -> NDArray[np.float64]:
    return to_float32(folder.read(name), folder.tensors[name].dtype).astype(np.float64)


def _run_tool(name: str, *arguments: str) -> str:
    """Return a tool's output. If the tool fails, raise JobFailed with its last line."""
    command = [sys.executable, f"tools/{name}", *arguments]
    end = functools.partial(die_with_parent, os.getpid())
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, preexec_fn=end)
    if result.returncode:
        lines = (result.stdout + result.stderr).strip().splitlines() or ["no output"]
        raise JobFailed(f"{' '.join(command[1:])}: {lines[-1]}")
    return result.stdout
