"""Measure how long a report about many long runs takes, and how large it is.

    python benchmarks/report.py [--runs 20] [--steps 100000] [--folder /tmp/report_benchmark] [--keep]

Writes runs with random values in the format of metrics.jsonl, then runs tools/report.py on them. The time is that of
the whole command, from the start of Python to its end. Uses about 0.5 GB of disk per million steps.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import numpy as np

from ascend_cpt.monitor.record import StepRecord, ValidationRecord, to_values

TOKENS_PER_STEP = 4 << 20


def write_run(folder: Path, num_steps: int, seed: int) -> None:
    """Write the records of a run as a training process would, with a validation every 1/50 of the run."""
    random = np.random.default_rng(seed)
    steps = np.arange(1, num_steps + 1)
    losses = 1.8 + 9 / np.sqrt(steps + 5) + random.normal(0, 0.04, num_steps) + 0.02 * seed
    losses[random.integers(0, num_steps, 5)] += 3.0
    norms, times = random.lognormal(0, 0.3, num_steps), 2.0 + random.gamma(1.0, 0.05, num_steps)
    waits = random.exponential(0.004, num_steps)
    folder.mkdir(parents=True)
    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for i, step in enumerate(steps.tolist()):
            rate = TOKENS_PER_STEP / float(times[i])
            record = StepRecord(
                step=step, total_steps=num_steps, loss=float(losses[i]), learning_rate=1e-5 * (1 - step / num_steps),
                grad_norm=float(norms[i]), tokens=step * TOKENS_PER_STEP, step_time_s=float(times[i]),
                tokens_per_s=rate, tokens_per_s_per_device=rate / 64, tflops_per_device=rate / 16000,
                mfu=rate / 5e6, data_wait_s=float(waits[i]), compute_s=float(times[i] - waits[i]), phase="general",
                peak_memory_bytes=50_000_000_000,
            )  # fmt: skip
            file.write(json.dumps(to_values(record)) + "\n")
            if step % max(1, num_steps // 50) == 0:
                held = ValidationRecord(step=step, name="general", loss=float(losses[i]) + 0.1, num_labels=1000)
                file.write(json.dumps(to_values(held)) + "\n")


def main() -> None:
    """Write the runs and the report, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, metavar="N")
    parser.add_argument("--steps", type=int, default=100_000, metavar="N")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="times to measure; the fastest counts")
    parser.add_argument("--folder", type=Path, help="where to write the runs (default: a temporary folder)")
    parser.add_argument("--keep", action="store_true", help="keep the runs and use them again")
    args = parser.parse_args()
    folder: Path = args.folder or Path(tempfile.mkdtemp(prefix="report_benchmark_"))
    folders = [folder / f"run_{number:02d}" for number in range(args.runs)]
    try:
        for number, run_dir in enumerate(folders):
            if not run_dir.exists():
                write_run(run_dir, args.steps, number)
        size = sum((run_dir / "metrics.jsonl").stat().st_size for run_dir in folders)
        print(f"{args.runs} runs of {args.steps:,} steps, {size / 1e6:,.0f} MB; load {os.getloadavg()[0]:.1f}")
        output = folder / "report.html"
        command = [sys.executable, str(REPOSITORY / "tools/report.py"), *map(str, folders), "--output", str(output)]
        times = []
        for _ in range(args.repeat):
            before = os.times()
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - start)
            after = os.times()
            used = after.children_user + after.children_system - before.children_user - before.children_system
            print(f"report: {times[-1]:.2f} s, {used:.2f} s of processor time, {output.stat().st_size / 1e6:.2f} MB")
        print(f"fastest: {min(times):.2f} s")
    finally:
        if not args.keep:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
