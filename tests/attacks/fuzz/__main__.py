"""Fuzz all readers of hostile input, or some of them.

python -m tests.attacks.fuzz                           all cases
python -m tests.attacks.fuzz --share 0.01 --seed 7     a hundredth of them, others than with seed 0
python -m tests.attacks.fuzz --target manifest         one target
python -m tests.attacks.fuzz --save tests/attacks/corpus    also write shortened failing cases
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tests.attacks.fuzz.harness import (
    MAX_GROWTH_MB,
    MAX_PEAK_MB,
    Finding,
    Result,
    Target,
    _raise_hang,
    folder_in_memory,
    minimize,
    run_target,
)
from tests.attacks.fuzz.targets import TARGETS

PROGRESS_S = 10.0


class Progress:
    """Prints how many cases are finished, the rate and the time left, every PROGRESS_S."""

    def __init__(self, total: int) -> None:
        self.total, self.finished = total, 0
        self._started_s = self._last_s = time.monotonic()

    def report(self, target: str, done: int, elapsed_s: float) -> None:
        now_s = time.monotonic()
        if now_s - self._last_s < PROGRESS_S:
            return
        self._last_s = now_s
        rate = (self.finished + done) / (now_s - self._started_s)
        left_s = (self.total - self.finished - done) / rate if rate else 0.0
        print(
            f"{self.finished + done:,} of {self.total:,} cases, {rate:,.0f}/s, {left_s:,.0f} s left; {target}: "
            f"{done:,}, {done / max(elapsed_s, 1e-9):,.0f}/s",
            file=sys.stderr,
            flush=True,
        )


def run_all(targets: Sequence[Target], *, share: float, seed: int) -> list[Result]:
    """Run targets one after another, with progress on standard error."""
    counts = [max(1, round(target.num_cases * share)) for target in targets]
    progress = Progress(sum(counts))
    results = []
    for target, count in zip(targets, counts, strict=True):
        results.append(run_target(target, count, seed, partial(progress.report, target.name)))
        progress.finished += count
        print(describe(results[-1]), flush=True)
        for finding in results[-1].findings:
            print(f"--- {finding.target} case {finding.index}: {finding.text}{finding.case[:500]!r}", flush=True)
    return results


def describe(result: Result) -> str:
    """Return the line of a target."""
    return (
        f"{result.target:14}{result.num_cases:>9,} cases {result.num_accepted:>9,} accepted {result.cpu_s:>7.1f} s CPU"
        f" {result.num_cases / max(result.cpu_s, 1e-9):>9,.0f}/s  growth {result.growth_mb:>5.1f} MB"
        f"  peak {result.peak_mb:>4.0f} MB  {len(result.findings)} failures"
    )


def find_problems(results: Sequence[Result]) -> list[str]:
    """Return a line for each broken property."""
    problems = [
        f"{finding.target} case {finding.index}: {finding.where}" for result in results for finding in result.findings
    ]
    for result in results:
        if result.growth_mb > MAX_GROWTH_MB:
            problems.append(f"{result.target}: memory grew by {result.growth_mb:.0f} MB")
        if result.peak_mb > MAX_PEAK_MB:
            problems.append(f"{result.target}: used {result.peak_mb:.0f} MB")
    return problems


def save(finding: Finding, targets: Sequence[Target], folder: Path) -> Path:
    """Write a shortened case to the corpus."""
    target = next(target for target in targets if target.name == finding.target)
    with folder_in_memory() as scratch:
        signal.signal(signal.SIGVTALRM, _raise_hang)
        case = finding.case if "process ended" in finding.where else minimize(target.prepare(scratch), finding)
    path = folder / Finding(**{**vars(finding), "case": case}).file_name
    path.write_bytes(case)
    return path


def main() -> int:
    """Run the fuzzer; return 1 if a property was broken."""
    names = [target.name for target in TARGETS]
    parser = argparse.ArgumentParser(description="Fuzz the readers of hostile input.")
    parser.add_argument("--share", type=float, default=1.0, help="share of the cases of each target (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the cases (default: 0)")
    parser.add_argument("--target", choices=names, action="append", help="target; repeat for several (default: all)")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="write shortened failing cases here")
    args = parser.parse_args()
    targets = [target for target in TARGETS if args.target is None or target.name in args.target]
    started_s = time.monotonic()
    results = run_all(targets, share=args.share, seed=args.seed)
    if args.save:
        for finding in (finding for result in results for finding in result.findings):
            print(f"saved {save(finding, targets, args.save)}")
    problems = find_problems(results)
    print("\n".join(problems))
    print(
        f"{sum(result.num_cases for result in results):,} cases, {sum(result.cpu_s for result in results):,.0f} s of "
        f"processor time, {time.monotonic() - started_s:,.0f} s in total (load {os.getloadavg()[0]:.0f}), "
        f"{len(problems)} problems"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
