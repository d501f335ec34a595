"""Refits the efficiencies used in time estimates to the step times logged by runs, and stores them in a file."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ascend_cpt.checkpoint.locate import RESOLVED_NAME
from ascend_cpt.config.parallel_layout import ParallelLayout
from ascend_cpt.errors import ConfigError
from ascend_cpt.files import write_whole
from ascend_cpt.monitor.history import read_metrics, read_run_info
from ascend_cpt.plan.case import TrainingCase
from ascend_cpt.plan.machines import MACHINES, Machine
from ascend_cpt.plan.speed.efficiency import Efficiency, ErrorBand
from ascend_cpt.plan.speed.fit import Prior, Speed, fit, predict
from ascend_cpt.run.planning.training_case import build_case_of, find_unplanned
from ascend_cpt.strict_json import JsonError, read_json_object

# The first steps include compilation and cache warm-up.
SKIPPED_STEPS = 3
MIN_STEPS = 5
# Relative error of a run's median step time.
SIGMA = 0.02
# How far the efficiencies may deviate from the published ones, in transformed space (see `fit`).
SIGMAS = {
    "matmul": 0.3,
    "attention": 0.3,
    "exchange": 0.4,
    "activation_passes": 0.3,
    "layer_s": 0.6,
    "step_s": 1.0,
    "data_hidden": 0.5,
    "tensor_hidden": 0.0,
}
MIN_RUNS_FOR_BAND = 3


@dataclass(frozen=True, kw_only=True)
class RunSpeed:
    """The speed of a finished or running run."""

    path: Path
    machine: Machine
    case: TrainingCase
    step_s: float
    """Median of the logged steps."""
    num_steps: int

    @property
    def tokens_per_device_s(self) -> float:
        return self.case.tokens_per_step / self.step_s / self.case.layout.world_size

    def to_speed(self) -> Speed:
        return Speed(case=self.case, machine=self.machine, tokens_per_device_s=self.tokens_per_device_s)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Efficiencies fitted to runs."""

    device: str
    """The name of the machine in `MACHINES`."""
    efficiency: Efficiency
    band: ErrorBand


def read_run_speed(run_dir: Path) -> RunSpeed:
    """Return the speed of a run from its folder: `run.json`, `resolved.yaml`, `metrics.jsonl`.

    Raises:
        ConfigError: when a file is missing, the run is too short, or it did not run on a known machine.
    """
    for name in ("run.json", RESOLVED_NAME, "metrics.jsonl"):
        if not (run_dir / name).is_file():
            raise ConfigError(f"--measured {run_dir}: has no {name}; give the folder of a run")
    info = read_run_info(run_dir)
    machine = next((machine for machine in MACHINES.values() if machine.chip == info["device_name"]), None)
    if machine is None:
        chips = ", ".join(machine.chip for machine in MACHINES.values())
        raise ConfigError(
            f"--measured {run_dir}: ran on {info['device_name']}; a plan can be fitted only to runs on {chips}"
        )
    # resolved.yaml describes the newest layout.
    first = max((layout.get("step", 0) for layout in info.get("layouts") or ()), default=0)
    times = [float(record["step_time_s"]) for record in read_metrics(run_dir / "metrics.jsonl")
             if record["kind"] == "step" and record["step"] > first][SKIPPED_STEPS:]  # fmt: skip
    if len(times) < MIN_STEPS:
        raise ConfigError(
            f"--measured {run_dir}: has {len(times)} steps after the first {SKIPPED_STEPS}; at least {MIN_STEPS} are "
            "needed"
        )
    # Versions without `cpt.loss_chunks` did not record it.
    case = _read_case(run_dir, int(info["num_devices"]), loss_chunks=int(info.get("loss_chunks", 1)))
    return RunSpeed(path=run_dir, machine=machine, case=case, step_s=statistics.median(times), num_steps=len(times))


def _read_case(run_dir: Path, world_size: int, *, loss_chunks: int) -> TrainingCase:
    path = run_dir / RESOLVED_NAME
    sections: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    if (unplanned := find_unplanned(sections)) is not None:
        raise ConfigError(f"--measured {path}: {unplanned[1]}; give other runs")
    try:
        parallel, runner = sections["parallel_config"], sections["runner_config"]
        layout = ParallelLayout(
            world_size=world_size,
            data_parallel=parallel["data_parallel"],
            tensor_parallel=parallel["model_parallel"],
            pipeline_parallel=parallel["pipeline_stage"],
            context_parallel=parallel.get("context_parallel") or 1,
            expert_parallel=parallel.get("expert_parallel") or 1,
        )
        is_pipeline = layout.pipeline_parallel > 1
        return build_case_of(
            sections,
            layout,
            seq_length=sections["model"]["model_config"]["seq_length"],
            micro_batch_size=runner["batch_size"],
            num_micro_batches=parallel["micro_batch_num"] if is_pipeline else runner["gradient_accumulation_steps"],
            compresses_mask=True,
            loss_chunks=loss_chunks,
        )
    except (KeyError, TypeError) as error:
        raise ConfigError(f"--measured {path}: {error} is missing; it was not written by this program") from None


def refit(speeds: Sequence[RunSpeed]) -> Measured:
    """Return the efficiencies fitted to runs on one machine, starting from the published ones.

    Raises:
        ConfigError: when the runs are from different machines.
    """
    machine = speeds[0].machine
    if any(speed.machine != machine for speed in speeds):
        raise ConfigError("--measured: the runs are from different machines; give runs from one machine")
    efficiency = _fit(speeds, machine)
    band = machine.band
    if len(speeds) >= MIN_RUNS_FOR_BAND:
        # Each run is predicted from the others.
        errors = sorted(
            _find_error(left_out, _fit([other for other in speeds if other is not left_out], machine))
            for left_out in speeds
        )
        band = ErrorBand(
            median=statistics.median(errors),
            high=errors[round(0.9 * (len(errors) - 1))],
            num_figures=len(errors),
            source="measured, left-out",
        )
    device = next(name for name, other in MACHINES.items() if other == machine)
    return Measured(device=device, efficiency=efficiency, band=band)


def _fit(speeds: Sequence[RunSpeed], machine: Machine) -> Efficiency:
    start = dataclasses.asdict(machine.efficiency)
    priors = {name: Prior(value=value, sigma=SIGMAS[name]) for name, value in start.items()}
    return fit([speed.to_speed() for speed in speeds], priors, sigma=SIGMA)[""]


def _find_error(speed: RunSpeed, efficiency: Efficiency) -> float:
    return abs(predict(speed.to_speed(), efficiency) / speed.tokens_per_device_s - 1)


def render_changes_of(speeds: Sequence[RunSpeed], measured: Measured) -> str:
    """Render how the refit changed the efficiencies and the errors on the runs."""
    before, after = speeds[0].machine.efficiency, measured.efficiency
    lines = []
    for field in dataclasses.fields(Efficiency):
        old, new = getattr(before, field.name), getattr(after, field.name)
        if abs(new / old - 1) >= 0.005:
            lines.append(f"measured  {field.name}: {old:.3g} -> {new:.3g} ({new / old - 1:+.0%})")
    for speed in speeds:
        errors = [predict(speed.to_speed(), it) / speed.tokens_per_device_s - 1 for it in (before, after)]
        lines.append(
            f"measured  {speed.path}: {speed.tokens_per_device_s:,.0f} tokens/s per device over {speed.num_steps} "
            f"steps; the error of the estimate was {errors[0]:+.0%} and is now {errors[1]:+.0%}"
        )
    return "\n".join(lines)


def write_measured(path: Path, measured: Measured, speeds: Sequence[RunSpeed]) -> None:
    """Write the efficiencies as JSON.

    Raises:
        ConfigError: when the file cannot be written.
    """
    runs = [{"run": str(speed.path), "tokens_per_device_s": speed.tokens_per_device_s} for speed in speeds]
    text = json.dumps({**dataclasses.asdict(measured), "runs": runs}, indent=1) + "\n"
    try:
        with write_whole(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--efficiencies {path}: cannot be written ({error.strerror})") from None


def read_measured(path: Path) -> Measured:
    """Read the efficiencies from a file.

    Raises:
        ConfigError: when the file is missing or damaged.
    """
    try:
        values = read_json_object(path)
        return Measured(
            device=str(values["device"]),
            efficiency=Efficiency(**{name: float(value) for name, value in values["efficiency"].items()}),
            band=ErrorBand(**values["band"]),
        )
    except (OSError, JsonError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"--efficiencies {path}: not a file of efficiencies ({error}); write it with --measured"
        ) from None
