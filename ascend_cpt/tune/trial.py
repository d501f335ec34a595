"""One trial: a short run of a candidate under the launcher, in its own folder, and its measurements."""

from __future__ import annotations

import functools
import json
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from ascend_cpt.cluster.messages.ports import are_ports_free
from ascend_cpt.errors import ConfigError
from ascend_cpt.files import write_text
from ascend_cpt.monitor.history import METRICS_NAME, read_metrics, read_run_info
from ascend_cpt.processes import die_with_parent
from ascend_cpt.run.launch.reason import find_reason
from ascend_cpt.tune.overlays import Candidate

REPOSITORY = Path(__file__).resolve().parents[2]
COMMAND_PLACE = "{}"
RUN_NAME = "trial"
CONNECT_TIMEOUT_S = 600
KILL_AFTER_S = 30.0
STOP_GRACE_S = 10

# These settings do not change step speed, and make the trial write only logs and metrics.
MEASURING: dict[str, Any] = {
    "load_checkpoint": None,
    "resume_training": None,
    "cpt": {
        "run_name": RUN_NAME,
        "init_from": "random",
        "validation": None,
        "export": None,
        "checkpoint": {"every": None, "keep_every": None, "keep_best": None, "background": False, "save": False},
        "monitor": {"print_every_steps": 1, "sinks": []},
    },
}


@dataclass(frozen=True, kw_only=True)
class TrialSettings:
    """Settings shared by all trials."""

    base: Path
    """The user's configuration with the overrides of the command line."""
    workers: int
    launch: str | None
    """Command that starts a job on all nodes; `{}` stands for the training command. None: this node's launcher."""
    num_steps: int
    num_warmup_steps: int
    timeout_s: float


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """A trial's measurements, or the reason why it failed."""

    name: str
    round: int
    error: str = ""
    tokens_per_s: tuple[float, ...] = ()
    """Speed of the whole job in every step after the warmup."""
    mfu: float | None = None
    """At the median speed; None if the peak of the device is unknown."""
    peak_memory_bytes: int | None = None
    """Peak of the device of the reporting rank; None where the device reports none."""
    first_step_s: float | None = None
    """From the start of the process to the end of the first step."""
    seconds: float = 0.0
    """Duration of the trial."""
    device: str = ""

    @property
    def median(self) -> float:
        """Median tokens/s."""
        return statistics.median(self.tokens_per_s)

    def save(self, path: Path) -> None:
        """Write the result as JSON."""
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")

    @staticmethod
    def load(path: Path) -> TrialResult | None:
        """Return the result in a file, or None if it is missing or damaged, so that the trial is repeated."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return TrialResult(**{**values, "tokens_per_s": tuple(values["tokens_per_s"])})
        except (OSError, ValueError, KeyError, TypeError):
            return None


def run_trial(candidate: Candidate, number: int, folder: Path, settings: TrialSettings) -> TrialResult:
    """Run a candidate in `folder`, which is replaced, and return its result. Failures are results too.

    Raises:
        KeyboardInterrupt: after the job was stopped.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = write_config(candidate, folder, settings.base)
    start_s = time.monotonic()
    error = _launch(config, folder, settings)
    seconds = time.monotonic() - start_s
    if not error:
        try:
            return read_result(candidate.name, number, folder / "output" / RUN_NAME, settings, seconds)
        except (ValueError, KeyError, OSError) as problem:
            error = str(problem)
    return TrialResult(name=candidate.name, round=number, error=error, seconds=seconds)


def write_config(candidate: Candidate, folder: Path, base: Path) -> Path:
    """Write a trial's configuration: the base, the candidate's changes, and the measurement settings."""
    (folder / "changes.yaml").write_text(yaml.safe_dump(candidate.changes, sort_keys=False), encoding="utf-8")
    sections = {"base_config": [str(base), "changes.yaml"], "output_dir": str(folder / "output"), **MEASURING}
    path = folder / "trial.yaml"
    path.write_text(yaml.safe_dump(sections, sort_keys=False), encoding="utf-8")
    return path


def make_command(config: Path, folder: Path, settings: TrialSettings) -> list[str]:
    """Return the command of a trial.

    Raises:
        ConfigError: `settings.launch` cannot be split or lacks a placeholder for the training command.
    """
    script = [str(REPOSITORY / "run_cpt.py"), "--config", str(config), "--stop-at-step", str(settings.num_steps)]
    training = shlex.join([*script, "--resume_training", "never", "--no-verify"])
    if settings.launch is None:
        launcher = ["bash", str(REPOSITORY / "scripts/msrun_launcher.sh")]
        where = [str(settings.workers), str(find_port()), str(folder / "logs"), "False", str(CONNECT_TIMEOUT_S)]
        return [*launcher, training, *where]
    try:
        words = shlex.split(settings.launch)
    except ValueError as error:
        raise ConfigError(f"--launch {settings.launch}: {error}; check its quotes") from None
    if COMMAND_PLACE not in words:
        raise ConfigError(f"--launch {settings.launch}: {COMMAND_PLACE} must stand for the training command")
    return [training if word == COMMAND_PLACE else word for word in words]


def _launch(config: Path, folder: Path, settings: TrialSettings) -> str:
    """Run the job to its end. Return why it failed, or an empty string."""
    environment = {
        **os.environ,
        "ASCEND_CPT_PYTHON": sys.executable,
        "ASCEND_CPT_MAX_RESTARTS": "0",
        "ASCEND_CPT_STOP_GRACE_S": str(STOP_GRACE_S),
    }
    console = folder / "console.txt"
    with console.open("wb") as output:
        job = subprocess.Popen(
            make_command(config, folder, settings),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=functools.partial(die_with_parent, os.getpid()),
        )
    try:
        code = job.wait(settings.timeout_s)
    except subprocess.TimeoutExpired:
        return f"not finished after {settings.timeout_s:.0f} s (--timeout)"
    finally:
        _stop(job)
    return "" if code == 0 else find_reason(console.read_text(encoding="utf-8", errors="replace"), code)


def _stop(job: subprocess.Popen[bytes]) -> None:
    """Stop a running job with SIGTERM, so that a launcher can stop other nodes, and then SIGKILL."""
    for number, wait_s in ((signal.SIGTERM, KILL_AFTER_S), (signal.SIGKILL, None)):
        if job.poll() is not None:
            return
        os.killpg(job.pid, number)
        try:
            job.wait(wait_s)
        except subprocess.TimeoutExpired:
            continue


def read_result(name: str, number: int, run_dir: Path, settings: TrialSettings, seconds: float) -> TrialResult:
    """Return the results recorded in a run folder.

    Raises:
        ValueError: steps are missing.
    """
    records = list(read_metrics(run_dir / METRICS_NAME))
    steps = [record for record in records if record["kind"] == "step"]
    if len(steps) < settings.num_steps:
        raise ValueError(f"the run recorded {len(steps)} of {settings.num_steps} steps; see {run_dir}")
    info = read_run_info(run_dir)
    tokens = float(info["tokens_per_step"])
    speeds = tuple(tokens / float(record["step_time_s"]) for record in steps[settings.num_warmup_steps :])
    peak = info["peak_flops"]
    rate = statistics.median(speeds) * float(info["flops_per_token"])
    starts = [float(record["total_s"]) for record in records if record["kind"] == "start"]
    return TrialResult(
        name=name,
        round=number,
        tokens_per_s=speeds,
        mfu=rate / (float(peak) * int(info["num_devices"])) if peak else None,
        peak_memory_bytes=steps[-1].get("peak_memory_bytes"),
        first_step_s=starts[0] if starts else None,
        seconds=seconds,
        device=str(info["device_name"]),
    )


def find_port(ports: Sequence[int] = range(24_000, 32_000, 4)) -> int:
    """Return a free port whose next two ports are also free.

    Raises:
        ConfigError: when there is none.
    """
    start = os.getpid() % len(ports)
    for port in [*ports[start:], *ports[:start]]:
        if are_ports_free(port):
            return port
    raise ConfigError(f"no free port between {ports[0]} and {ports[-1]}; end other jobs on this machine")
