"""The steps of a rehearsal: one device, then start, steps, validation, save, kill, resume, export, verify, weights."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil

from ascend_cpt.checkpoint.locate import list_complete
from ascend_cpt.errors import CptError
from ascend_cpt.rehearsal.compare import (
    MAX_LOSS_DIFFERENCE,
    MAX_UPDATE_DIFFERENCE,
    compare_updates,
    find_largest_difference,
    read_losses,
    read_records,
    read_validation,
)
from ascend_cpt.rehearsal.launch import Process, StepFailed, start_run
from ascend_cpt.rehearsal.prepare import Prepared
from ascend_cpt.rehearsal.shrink_recipe import NUM_STEPS, SAVE_EVERY_STEPS
from ascend_cpt.rehearsal.table import Outcome, Result, describe, has_passed
from ascend_cpt.softnpu.build import prepare_libraries

FIRST_STEPS = range(1, SAVE_EVERY_STEPS + 1)
LATER_STEPS = range(SAVE_EVERY_STEPS + 1, NUM_STEPS + 1)
END_TIMEOUT_S = 120  # for the rest of a launch to end after a worker was killed
_LOGITS = re.compile(r"differ by at most (\S+) of their standard deviation")


class Rehearser:
    """Runs the steps one after the other; those after a broken one are not run."""

    def __init__(
        self,
        prepared: Prepared,
        *,
        validation_sets: tuple[str, ...],
        no_validation: str,
        timeout_s: float,
        report: Callable[[str], None],
    ) -> None:
        """Prepare to run.

        Args:
            prepared: What is run.
            validation_sets: Names of the sets.
            no_validation: Why there are none.
            timeout_s: Limit of a launch.
            report: Is called with a line when a step starts and when it ends.
        """
        self._parallel, self._one, self._start = prepared.parallel, prepared.one, prepared.start
        self._sets, self._no_validation = validation_sets, no_validation
        self._timeout_s, self._report = timeout_s, report
        self._processes: list[Process] = []
        self._exported = prepared.parallel.folder / "exported"
        self._is_broken = False
        self.outcomes: list[Outcome] = []

    def run(self) -> bool:
        """Run all steps and return whether they passed. No process is left when it returns or raises.

        Raises:
            CptError: when this machine cannot emulate NPUs.
        """
        steps: tuple[tuple[str, str, Callable[[], Outcome]], ...] = (
            ("libraries", "building the emulated NPUs unless they are built", self._build_libraries),
            ("one device", f"{NUM_STEPS} steps on one device", self._run_one_device),
            ("start", f"{self._parallel.num_processes} processes, to the first step", self._start_parallel),
            (f"steps 1-{SAVE_EVERY_STEPS}", "until they are logged", self._train),
            ("validation", "until the losses are logged", self._validate),
            ("save", f"until the checkpoint of step {SAVE_EVERY_STEPS} is complete", self._save),
            ("kill", "SIGKILL of one worker", self._kill),
            ("resume", f"from step {SAVE_EVERY_STEPS} to {NUM_STEPS}", self._resume),
            ("export", "to a Hugging Face folder", self._export),
            ("verify", "tensors and logits of the export", self._verify),
            ("weights", "of the export against one device", self._compare_weights),
        )
        try:
            for name, doing, step in steps:
                self._run_step(name, doing, step)
        finally:
            for process in self._processes:
                process.kill()
        return has_passed(self.outcomes)

    def _run_step(self, name: str, doing: str, step: Callable[[], Outcome]) -> None:
        if self._is_broken:
            self.outcomes.append(Outcome(name=name, result=Result.NOT_RUN))
            return
        self._report(f"{name}: {doing}")
        started = time.monotonic()
        try:
            outcome = step()
        except StepFailed as error:
            outcome = Outcome(name=name, result=Result.FAILED, note=str(error), log=error.log)
            self._is_broken = True
        outcome = replace(outcome, name=name, seconds=time.monotonic() - started)
        self._report(describe(outcome))
        self.outcomes.append(outcome)

    def _build_libraries(self) -> Outcome:
        return _pass(f"in {prepare_libraries().parents[1]}")

    def _run_one_device(self) -> Outcome:
        process = self._launch(start_run(self._one, 1, timeout_s=self._timeout_s))
        process.succeed()
        losses = read_losses(self._one.run_dir)
        if sorted(losses) != list(range(1, NUM_STEPS + 1)):
            raise StepFailed(f"logged the steps {sorted(losses)}, expected 1 to {NUM_STEPS}", process.log)
        return _pass("loss " + " ".join(f"{losses[step]:.4f}" for step in sorted(losses)))

    def _start_parallel(self) -> Outcome:
        run_dir = self._parallel.run_dir
        process = self._launch(start_run(self._parallel, 1, timeout_s=self._timeout_s))
        process.wait_until(lambda: bool(read_records(run_dir, "step") or read_records(run_dir, "validation")))
        return _pass(f"{self._parallel.num_processes} processes from Hugging Face weights")

    def _train(self) -> Outcome:
        self._processes[-1].wait_until(lambda: SAVE_EVERY_STEPS in read_losses(self._parallel.run_dir))
        return self._compare_losses(FIRST_STEPS)

    def _validate(self) -> Outcome:
        if not self._sets:
            return Outcome(name="", result=Result.SKIPPED, note=self._no_validation)
        wanted = [(step, name) for step in (0, SAVE_EVERY_STEPS) for name in self._sets]
        self._processes[-1].wait_until(lambda: set(wanted) <= set(read_validation(self._parallel.run_dir)))
        found, expected = (read_validation(run.run_dir) for run in (self._parallel, self._one))
        difference = find_largest_difference(found, expected, wanted)
        return _judge(difference, MAX_LOSS_DIFFERENCE, f"losses of {', '.join(self._sets)} and one device's")

    def _save(self) -> Outcome:
        self._processes[-1].wait_until(lambda: SAVE_EVERY_STEPS in self._list_saved())
        files = self._list_saved()[SAVE_EVERY_STEPS]
        return _pass(f"step {SAVE_EVERY_STEPS}, {files} files")

    def _kill(self) -> Outcome:
        process = self._processes[-1]
        workers = process.kill_worker()
        code = process.finish()
        if code == 0:
            raise StepFailed("the launch ended without an error although a worker was killed", process.log)
        _, alive = psutil.wait_procs(workers, timeout=END_TIMEOUT_S)
        if alive:
            raise StepFailed(f"{len(alive)} workers were still running after the launcher had ended", process.log)
        return _pass(f"the other workers were ended, exit code {code}")

    def _resume(self) -> Outcome:
        before = read_losses(self._parallel.run_dir)
        process = self._launch(start_run(self._parallel, 2, timeout_s=self._timeout_s))
        process.succeed()
        if f"continuing at step {SAVE_EVERY_STEPS} " not in process.log.read_text(encoding="utf-8", errors="replace"):
            raise StepFailed(f"did not continue at step {SAVE_EVERY_STEPS}", process.log)
        after = read_losses(self._parallel.run_dir)
        changed = [step for step, loss in before.items() if after.get(step) != loss]
        if changed:
            raise StepFailed(f"the losses of steps {changed} differ from those before the kill", process.log)
        return self._compare_losses(LATER_STEPS)

    def _export(self) -> Outcome:
        shutil.rmtree(self._exported, ignore_errors=True)
        self._run_tool("export", "to-hf", str(self._parallel.run_dir), str(self._exported))
        return _pass(f"step {NUM_STEPS}")

    def _verify(self) -> Outcome:
        log = self._run_tool("verify", "verify", str(self._exported), "--against", str(self._parallel.run_dir))
        match = _LOGITS.search(log.read_text(encoding="utf-8", errors="replace"))
        outcome = _pass("tensors bit-equal; difference of the logits / their standard deviation")
        return replace(outcome, difference=float(match[1])) if match else outcome

    def _compare_weights(self) -> Outcome:
        try:
            found = compare_updates(self._exported, self._one.run_dir, self._start)
        except CptError as error:
            raise StepFailed(str(error)) from None
        note = f"of the update; {found.worst:.1e} in {found.worst_name}"
        return _judge(found.overall, MAX_UPDATE_DIFFERENCE, note)

    def _compare_losses(self, steps: range) -> Outcome:
        found, expected = (read_losses(run.run_dir) for run in (self._parallel, self._one))
        difference = find_largest_difference(found, expected, steps)
        return _judge(difference, MAX_LOSS_DIFFERENCE, f"losses of steps {steps[0]}-{steps[-1]} and one device's")

    def _list_saved(self) -> dict[int, int]:
        """Return step → number of files of the complete checkpoints."""
        complete, _ = list_complete(self._parallel.run_dir / "checkpoint")
        return {step: len(checkpoint.state.files) for step, checkpoint in complete.items()}

    def _run_tool(self, name: str, *arguments: str) -> Path:
        log = self._parallel.folder / f"{name}.log"
        command = [sys.executable, "tools/convert_weights.py", *arguments]
        process = self._launch(Process(command, log, timeout_s=self._timeout_s))
        process.succeed()
        return log

    def _launch(self, process: Process) -> Process:
        self._processes.append(process)
        return process


def _pass(note: str) -> Outcome:
    return Outcome(name="", result=Result.PASSED, note=note)


def _judge(difference: float, limit: float, note: str) -> Outcome:
    """Return the outcome of a comparison, which does not end the rehearsal."""
    if difference <= limit:
        return Outcome(name="", result=Result.PASSED, difference=difference, note=note)
    return Outcome(name="", result=Result.FAILED, difference=difference, note=f"{note}: more than {limit:g}")
