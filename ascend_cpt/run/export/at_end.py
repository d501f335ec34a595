"""Exports a completed run and verifies the export by running tools/convert_weights.py in a separate process.

The process is separate because verification needs MindSpore on the CPU, and this process may use it on NPUs.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from ascend_cpt.checkpoint.locate import BEST_NAME, Checkpoint, check_checkpoint, locate_checkpoint
from ascend_cpt.config.schema import ExportConfig
from ascend_cpt.config.values import format_bytes
from ascend_cpt.errors import CheckpointError, CptError, ExportError
from ascend_cpt.model.parameters import count_parameters
from ascend_cpt.model.sizes import read_sizes
from ascend_cpt.run.export.target import ExportRecord, choose_like, find_own_export, write_record
from ascend_cpt.run.resolved_run import ResolvedRun

TOOL = Path(__file__).resolve().parents[3] / "tools" / "convert_weights.py"
LOG_NAME = "export.log"
# The launcher sets these for its workers. If the tool's process inherited them, it would try to join the job.
LAUNCH_VARIABLES = ("RANK_ID", "RANK_SIZE", "DEVICE_ID", "RANK_TABLE_FILE")
LAUNCH_PREFIX = "MS_"
# The logits comparison holds two float32 models in memory, plus their parts during loading.
LOGITS_BYTES_PER_PARAMETER = 12
# Files from another node may appear on shared storage with a delay.
VISIBILITY_TIMEOUT_S = 120.0
POLL_S = 1.0


def is_export_missing(run: ResolvedRun) -> bool:
    """Return whether a completed run still has to be exported or verified.

    Raises:
        CheckpointError: the checkpoint to export is missing.
    """
    export = run.config.cpt.export
    if export is None:
        return False
    own = find_own_export(run)
    return own is None or not own.verified or own.step != _find_checkpoint(run, export).state.step


def export_at_end(run: ResolvedRun, show: Callable[[str], None]) -> None:
    """Export a completed run as configured in `cpt.export` and verify the export, unless already done.

    Called by one process. `show` prints a line.

    Raises:
        ExportError: a one-line message with the commands that repeat the failed steps.
    """
    export = run.config.cpt.export
    if export is None:
        return
    try:
        checkpoint = _wait_for_checkpoint(run, export)
        if not is_export_missing(run):
            show(f"export   {export.to}: step {checkpoint.state.step}, already exported and verified")
            return
        like = choose_like(run)
        own = find_own_export(run)
    except (CptError, OSError) as error:
        raise ExportError(f"the run is complete, but its export to {export.to} failed: {error}") from error
    target, step = Path(export.to), checkpoint.state.step
    to_hf = ["to-hf", str(checkpoint.folder), str(target), *(["--like", str(like)] if like else [])]
    to_hf += ["--merge"] if run.lora else []
    verify = ["verify", str(target), "--against", str(checkpoint.folder)]
    if not _has_memory_for_logits(run, show):
        verify.append("--no-logits")
    commands = [to_hf, verify]
    try:
        record = ExportRecord(to=str(target.absolute()), step=step, verified=False)
        # A folder with its final name is complete, so an unverified export of this step only needs verification.
        if own is None or own.step != step:
            if own is not None:
                show(f"export   the earlier export of step {own.step} was moved to {_move_aside(target, own.step)}")
            elif target.is_dir() and not any(target.iterdir()):
                target.rmdir()
            write_record(run.run_dir, record)
            show(f"export   {_run_tool(run, to_hf)[-1]}")
        commands = [verify]
        lines = _run_tool(run, verify)
        write_record(run.run_dir, ExportRecord(to=record.to, step=step, verified=True))
    except (_ToolError, OSError) as error:
        again = " && ".join(shlex.join(["python", "tools/convert_weights.py", *command]) for command in commands)
        raise ExportError(
            f"the run is complete, but its export to {target} failed: {error}; to repeat it: {again}"
        ) from error
    compared = [line for line in lines if line.startswith("logits of")]
    show(f"export   verified against {checkpoint.folder}{': ' + compared[0] if compared else ', without logits'}")


def _find_checkpoint(run: ResolvedRun, export: ExportConfig) -> Checkpoint:
    if export.checkpoint == BEST_NAME:
        return locate_checkpoint(run.run_dir / BEST_NAME)
    return check_checkpoint(run.checkpoint_root / f"iteration_{run.budget.total_steps:08d}")


def _wait_for_checkpoint(run: ResolvedRun, export: ExportConfig) -> Checkpoint:
    """Return the checkpoint to export. With pipeline stages, another node completes the checkpoint."""
    deadline = time.monotonic() + (VISIBILITY_TIMEOUT_S if run.report_rank else 0.0)
    while True:
        try:
            return _find_checkpoint(run, export)
        except CheckpointError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(POLL_S)


def _has_memory_for_logits(run: ResolvedRun, show: Callable[[str], None]) -> bool:
    needed = LOGITS_BYTES_PER_PARAMETER * count_parameters(read_sizes(run.model))
    available: int = psutil.virtual_memory().available
    if needed > available:
        show(
            f"export   logits are not compared: this needs about {format_bytes(needed)} of host memory, but "
            f"only {format_bytes(available)} are available"
        )
        return False
    return True


def _move_aside(target: Path, step: int) -> Path:
    """Rename an earlier export of this run, because it may contain files that the user added or edited."""
    number = 0
    while (aside := target.with_name(f"{target.name}.step_{step}{f'_{number}' if number else ''}")).exists():
        number += 1
    target.rename(aside)
    return aside


class _ToolError(Exception):
    """The tool failed; the message is the tool's error line."""


def _run_tool(run: ResolvedRun, arguments: Sequence[str]) -> list[str]:
    """Run a convert_weights.py command and return the lines it printed. The full output goes to logs/export.log."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in LAUNCH_VARIABLES and not name.startswith(LAUNCH_PREFIX)
    }
    command = [sys.executable, str(TOOL), *arguments]
    result = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    log = run.run_dir / "logs" / LOG_NAME
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {shlex.join(command)}\n{result.stdout}{result.stderr}")
    lines = result.stdout.splitlines()
    if result.returncode == 0 and lines:
        return lines
    errors = [line.removeprefix("error: ") for line in result.stderr.splitlines() if line.startswith("error: ")]
    if lines and lines[-1] == "NOT EQUAL":
        errors = ["it differs from the checkpoint; remove the folder, then export again"]
    raise _ToolError(f"{errors[-1] if errors else f'exit code {result.returncode}'} (log: {log})")
