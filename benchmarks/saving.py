"""Measure how long training waits for a checkpoint: `python benchmarks/saving.py`.

One process trains a Qwen3 on the CPU, once with all saving in the foreground and once with `checkpoint.background`,
alternately. The figures come from the run folder: `timeline.jsonl` (saving), `metrics.jsonl` (step times) and the
time at which each checkpoint became complete. The last save, for which every run waits, is not counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.monitoring import VOCAB_SIZE, make_dataset

SEQ_LENGTH = 256
MODES = {"foreground": False, "background": True}


@dataclass(frozen=True, kw_only=True)
class Saving:
    """What was measured in one run, in seconds."""

    checkpoint_bytes: int
    stalls_s: list[float]
    """Time that training waited for each save."""
    completed_s: list[float]
    """Time from the end of the stall to the completion of each checkpoint."""
    calm_step_s: float
    """Median step time while nothing is written."""
    writing_step_s: float | None
    """Median step time while files are written; None if there was no such step."""


def run_once(folder: Path, background: bool, args: argparse.Namespace) -> Saving:
    """Train once and return what was measured."""
    folder.mkdir()
    make_dataset(folder)
    config = folder / "run.json"  # JSON is YAML
    base = ROOT / "configs/base"
    size = {"hidden_size": args.hidden, "intermediate_size": 3 * args.hidden, "num_hidden_layers": args.layers}
    settings = {
        "base_config": [str(base / "cpu_tiny.yaml"), str(base / "qwen3_tiny.yaml")],
        "output_dir": str(folder / "output"),
        "model": {"model_config": {**size, "vocab_size": VOCAB_SIZE}},
        "cpt": {
            "run_name": "run",
            "init_from": "random",
            "train_tokens": args.steps * SEQ_LENGTH,
            "global_batch_size": 1,
            "schedule": {"kind": "constant", "peak_lr": 1e-4},
            "sources": {"rows": {"path": str(folder)}},
            "checkpoint": {"every": f"{args.every} steps", "keep_last": 0, "background": background},
        },
    }
    config.write_text(json.dumps(settings), encoding="utf-8")
    command = [sys.executable, str(ROOT / "run_cpt.py"), "--config", str(config)]
    result = subprocess.run(command, text=True, capture_output=True)
    if result.returncode:
        sys.exit(f"{result.stdout}{result.stderr}")
    return measure(folder / "output/run")


def measure(run_dir: Path) -> Saving:
    """Read the figures of a run from its folder."""
    intervals = [json.loads(line) for line in (run_dir / "timeline.jsonl").read_text("utf-8").splitlines()]
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text("utf-8").splitlines()]
    steps_s = {record["step"]: record["step_time_s"] for record in records if record.get("kind") == "step"}
    folders = sorted((run_dir / "checkpoint").glob("iteration_*"))
    complete_s = [(folder / "cpt_state.json").stat().st_mtime for folder in folders][:-1]
    step, stalls, ends = 0, dict.fromkeys((int(folder.name[-8:]) for folder in folders[:-1]), 0.0), {}
    writing: list[float] = []
    calm: list[float] = []
    for interval in intervals:
        step = interval["last_step"] or step
        if interval["part"] == "saving":
            saved = max((number for number in stalls if number <= step), default=0)
            if step <= max(stalls) or saved != max(stalls) or step < max(steps_s):
                stalls[saved] += interval["end_s"] - interval["start_s"]
                ends.setdefault(saved, interval["end_s"])
        elif interval["part"] == "steps":
            now_s = interval["start_s"]
            for number in range(interval["first_step"], interval["last_step"] + 1):
                saved_at = [index for index, known in enumerate(sorted(stalls)) if known < number]
                is_writing = bool(saved_at) and now_s < complete_s[saved_at[-1]]
                (writing if is_writing else calm).append(steps_s[number])
                now_s += steps_s[number]
    return Saving(
        checkpoint_bytes=sum(path.stat().st_size for path in folders[0].iterdir()),
        stalls_s=list(stalls.values()),
        completed_s=[max(0.0, at_s - ends[saved]) for at_s, saved in zip(complete_s, sorted(stalls), strict=True)],
        calm_step_s=statistics.median(calm),
        writing_step_s=statistics.median(writing) if writing else None,
    )


def describe(name: str, runs: list[Saving]) -> None:
    """Print the figures of all runs of a mode."""
    for number, run in enumerate(runs, start=1):
        stalls = " ".join(f"{stall_s:.2f}" for stall_s in run.stalls_s)
        completed = " ".join(f"{one_s:.2f}" for one_s in run.completed_s)
        writing = "-" if run.writing_step_s is None else f"{run.writing_step_s:.3f} s"
        print(
            f"{name} run {number}: {run.checkpoint_bytes / 1e6:.0f} MB; stall {stalls} s; complete after {completed} s "
            f"more; step {run.calm_step_s:.3f} s, while writing {writing}"
        )


def main() -> int:
    """Train alternately with both modes and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=25, help="steps between saves")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=2)
    args = parser.parse_args()
    runs: dict[str, list[Saving]] = {name: [] for name in MODES}
    for number in range(args.rounds):
        for name, background in MODES.items():
            with tempfile.TemporaryDirectory() as folder:
                runs[name].append(run_once(Path(folder) / f"{name}{number}", background, args))
            describe(name, runs[name][-1:])
    full_s, stall_s = (statistics.median(stall for run in runs[name] for stall in run.stalls_s) for name in MODES)
    print(f"median: full write {full_s:.2f} s, stall {stall_s:.3f} s ({100 * stall_s / full_s:.1f} % of a full write)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
