"""Runs a rank of a cluster on the simulated device, in a separate process."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ascend_cpt.backend.simulated_rank.messages import Job, ParameterOnRank, RankOutcome
from ascend_cpt.backend.simulated_rank.process import CALLBACK_NAME, LOADER_NAME
from ascend_cpt.run.mindformers_yaml import make_mindformers_config, render_yaml
from ascend_cpt.run.resolved_run import ResolvedRun
from ascend_cpt.simulate.communication import Exchange, read_exchanges
from ascend_cpt.simulate.explain_error import explain_error
from ascend_cpt.softnpu.build import list_library_paths, prepare_libraries
from ascend_cpt.softnpu.environment import find_cann

MODULE = "ascend_cpt.backend.simulated_rank.process"
POLL_S = 0.5
STOP_WAIT_S = 10
EXIT_WAIT_S = 10
RESULT_NAME = "result.json"
LOG_TAIL_CHARACTERS = 4000
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class RankResult:
    """The result of compiling a rank. `error` is empty on success."""

    rank: int
    stage: int
    parameters: tuple[ParameterOnRank, ...] = ()
    exchanges: tuple[Exchange, ...] = ()
    """Communication operators of one step."""
    peak_bytes: int = 0
    host_bytes: int = 0
    duration_s: float = 0.0
    compile_s: float = 0.0
    """The part of `duration_s` until the first step ended, without imports and building the network."""
    compile_cpu_s: float = 0.0
    error: str = ""


def list_first_ranks(run: ResolvedRun) -> list[int]:
    """Return the first rank of every pipeline stage."""
    per_stage = run.layout.world_size // run.layout.pipeline_parallel
    return [stage * per_stage for stage in range(run.layout.pipeline_parallel)]


def simulate_rank(
    run: ResolvedRun,
    rank: int,
    *,
    num_steps: int,
    timeout_s: float,
    report: Callable[[str], None],
    log_dir: Path | None = None,
) -> RankResult:
    """Compile the training step of one rank and run it on the simulated device.

    Args:
        run: The resolved run.
        rank: Rank in the cluster.
        num_steps: Steps to run.
        timeout_s: After this many seconds, the process is stopped and an error is reported.
        report: Called with a line at the start of each phase.
        log_dir: Folder in which to keep the process's output.

    Raises:
        ClusterError: when this machine cannot simulate.
    """
    cann = find_cann(os.environ)
    lib64 = None if cann else prepare_libraries()
    stage = rank // (run.layout.world_size // run.layout.pipeline_parallel)
    with tempfile.TemporaryDirectory(prefix="ascend_cpt_simulate_") as folder:
        work = Path(folder)
        job = Job(
            yaml_path=str(work / "resolved.yaml"),
            result_path=str(work / RESULT_NAME),
            num_steps=num_steps,
            uses_cann=cann is not None,
            parent_pid=os.getpid(),
            loss_chunks=run.config.cpt.loss_chunks,
            frozen=[] if run.lora else run.frozen,
            lora=dataclasses.asdict(run.lora) if run.lora else {},
        )
        text = render_yaml(make_sections(run, num_steps, work), "Compiled by ascend_cpt for the simulated device")
        Path(job.yaml_path).write_text(text, encoding="utf-8")
        (work / "job.json").write_text(json.dumps(dataclasses.asdict(job)), encoding="utf-8")
        started = time.monotonic()
        log_path = (log_dir or work) / f"simulate_rank_{rank}.log"
        log_path.parent.mkdir(parents=True, exist_ok=True)
        ending = _run_process(work, log_path, make_environment(run, rank, lib64), timeout_s, report)
        duration_s = time.monotonic() - started
        outcome = _read_outcome(Path(job.result_path))
        if outcome is None or outcome.error:
            log = log_path.read_text(encoding="utf-8", errors="replace")[-LOG_TAIL_CHARACTERS:]
            error = explain_error(outcome.error if outcome else "", ending=ending, log=log, config=run.config)
            return RankResult(rank=rank, stage=stage, duration_s=duration_s, error=error)
        return RankResult(
            rank=rank,
            stage=stage,
            parameters=tuple(outcome.parameters),
            exchanges=tuple(read_exchanges(work / f"rank_{rank}", run.layout, outcome.num_steps)),
            peak_bytes=outcome.peak_bytes,
            host_bytes=outcome.host_bytes,
            duration_s=duration_s,
            compile_s=outcome.compile_s,
            compile_cpu_s=outcome.compile_cpu_s,
        )


def make_sections(run: ResolvedRun, num_steps: int, work: Path) -> dict[str, Any]:
    """Return the run's MindFormers configuration with placeholder rows, random weights and the simulation callback."""
    sections = make_mindformers_config(run, resume_from=None, init_from=None)
    loader = {
        "type": LOADER_NAME,
        # One more step than is run, because the last step prefetches the next batch.
        "num_rows": run.budget.global_batch_size * (num_steps + 1),
        "row_format": run.row_format.to_record(),
    }
    sections["train_dataset"]["data_loader"] = loader
    sections["train_dataset_task"]["dataset_config"]["data_loader"] = copy.deepcopy(loader)
    sections.update(callbacks=[{"type": CALLBACK_NAME}], output_dir=str(work), load_checkpoint="")
    return sections


def make_environment(run: ResolvedRun, rank: int, lib64: Path | None) -> dict[str, str]:
    """Return the environment for a rank's process: simulation mode, with emulated libraries if CANN is missing."""
    launch_variables = ("MS_ROLE", "MS_WORKER_NUM", "MS_SCHED_HOST", "MS_SCHED_PORT", "MS_NODE_ID", "RANK_TABLE_FILE")
    environment = {name: value for name, value in os.environ.items() if name not in launch_variables}
    environment |= {
        "MS_SIMULATION_LEVEL": "1",
        "RANK_SIZE": str(run.layout.world_size),
        "RANK_ID": str(rank),
        "DEVICE_ID": "0",
        # Without this, the step's graph cannot be built kernel by kernel in simulation.
        "MS_DEV_RUNTIME_CONF": "inline:False",
        "LOG_MF_PATH": "mindformers_log",
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    if lib64 is not None:
        paths = [str(path) for path in list_library_paths(lib64)]
        environment["LD_LIBRARY_PATH"] = os.pathsep.join([*paths, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])
    return environment


def _run_process(
    work: Path, log_path: Path, environment: dict[str, str], timeout_s: float, report: Callable[[str], None]
) -> str:
    """Run the process and return how it ended, or "" if it exited without a signal."""
    deadline = time.monotonic() + timeout_s
    command = [sys.executable, "-m", MODULE, "job.json"]
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command, cwd=work, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            phase = ""
            while process.poll() is None:
                if time.monotonic() > deadline:
                    return f"stopped after {timeout_s:.0f} s; raise --timeout"
                # The result is complete, because it is renamed into place. MindSpore may hang while the process exits.
                if (work / RESULT_NAME).is_file():
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(EXIT_WAIT_S)
                    return ""
                time.sleep(POLL_S)
                new = _read_phase(work)
                if new and new != phase:
                    phase = new
                    report(phase)
        finally:
            _stop(process)
    code = process.returncode
    return f"ended by signal {signal.Signals(-code).name}" if code < 0 else ""


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(STOP_WAIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _read_phase(work: Path) -> str:
    try:
        return (work / "phase").read_text(encoding="utf-8")
    except OSError:
        return ""


def _read_outcome(path: Path) -> RankOutcome | None:
    """Return the outcome that the process wrote, which is valid even if it aborted afterwards."""
    if not path.is_file():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    record["parameters"] = [ParameterOnRank(**item) for item in record["parameters"]]
    return RankOutcome(**record)
