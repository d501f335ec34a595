"""Compiles one rank of every pipeline stage of the shipped configurations, with two layers per stage.

python benchmarks/compile_shipped.py RESULTS.jsonl            compile what RESULTS.jsonl does not contain yet
python benchmarks/compile_shipped.py RESULTS.jsonl --table    print the table of docs/planning.md

The first and last stages of all configurations are compiled first, then the others. Every result is appended to
RESULTS.jsonl, so that the command can be interrupted and repeated. A rank is compiled again if its layout has changed.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ascend_cpt.plan.case import GIGABYTE, TrainingCase
from ascend_cpt.plan.memory import estimate_memory
from ascend_cpt.run.planning.assumed_run import resolve_without_data
from ascend_cpt.run.planning.plan_run import plan_run
from ascend_cpt.run.planning.training_case import build_case
from ascend_cpt.run.resolved_run import ResolvedRun
from ascend_cpt.simulate.compare_slices import find_differences
from ascend_cpt.simulate.compile_ranks import load_shortened
from ascend_cpt.simulate.run_rank import list_first_ranks, simulate_rank
from benchmarks.plan_shipped import MACHINE, Shipped, describe, list_shipped

MIN_MICRO_BATCHES = 2  # one is compiled without the accumulation of gradients


@dataclass(frozen=True, kw_only=True)
class Work:
    """A rank to compile."""

    shipped: Shipped
    run: ResolvedRun
    """Shortened to a few layers and micro batches per stage."""
    case: TrainingCase
    stage: int
    rank: int

    @property
    def key(self) -> str:
        """Identifies the compiled case; configurations with the same sizes, rope and layout have the same key."""
        rope = {name: value for name, value in sorted(self.run.model.items()) if "rope" in name or "theta" in name}
        case = dataclasses.asdict(self.case)
        del case["can_interleave"]  # only the search reads it
        text = json.dumps([case, rope, self.rank], default=str, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def list_work(layers_per_stage: int) -> list[Work]:
    """Return the ranks of all configurations: first and last stages, then the others, small ones first."""
    work: list[Work] = []
    for shipped in list_shipped():
        run, _ = plan_run(shipped.path, dict(shipped.overrides), shipped.make_cluster(MACHINE))
        micro_batches = max(MIN_MICRO_BATCHES, run.layout.pipeline_parallel)
        config = load_shortened(run, shipped.overrides, layers_per_stage=layers_per_stage, micro_batches=micro_batches)
        short = resolve_without_data(config, run.layout.world_size)
        case = build_case(short)
        work += [
            Work(shipped=shipped, run=short, case=case, stage=stage, rank=rank)
            for stage, rank in enumerate(list_first_ranks(short))
        ]
    return sorted(work, key=lambda one: (0 < one.stage < one.case.num_stages - 1, one.case.num_stages))


def compile_rank(work: Work, timeout_s: float) -> dict[str, Any]:
    """Compile a rank and return the record of its result."""
    result = simulate_rank(work.run, work.rank, num_steps=1, timeout_s=timeout_s, report=lambda line: None)
    case = work.case
    return {
        "key": work.key,
        "name": work.shipped.name,
        "layout": describe(case),
        "stage": work.stage,
        "rank": work.rank,
        "date": time.strftime("%Y-%m-%d"),
        "layers": case.layers_per_stage[work.stage],
        "recomputed": case.recomputed_layers[work.stage],
        "micro_batches": case.num_micro_batches,
        "duration_s": round(result.duration_s, 1),
        "compile_s": round(result.compile_s, 1),
        "compile_cpu_s": round(result.compile_cpu_s, 1),
        "host_bytes": result.host_bytes,
        "peak_bytes": result.peak_bytes,
        "planned_bytes": estimate_memory(case)[work.stage].peak_bytes,
        "error": result.error,
        "differences": [] if result.error else find_differences(case, result),
    }


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """Return the newest record of every key."""
    if not path.is_file():
        return {}
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {record["key"]: record for record in records}


def compile_all(path: Path, *, layers_per_stage: int, timeout_s: float) -> bool:
    """Compile the ranks that have no successful result yet. Return whether all compiled as planned."""
    done = {key for key, record in read_results(path).items() if is_good(record)}
    work = list_work(layers_per_stage)
    print(f"{len(work)} ranks, {len({one.key for one in work})} different; {len(done)} are done", flush=True)
    for one in work:
        if one.key in done:
            continue
        record = compile_rank(one, timeout_s)
        with path.open("a", encoding="utf-8") as results:
            results.write(json.dumps(record) + "\n")
        verdict = "as planned" if is_good(record) else record["error"] or "; ".join(record["differences"])
        print(f"{one.shipped.name} rank {one.rank}: {record['duration_s']:.0f} s, {verdict}", flush=True)
        done.add(one.key)
    return all(is_good(record) for record in read_results(path).values())


def is_good(record: dict[str, Any]) -> bool:
    """Return whether the rank compiled as planned."""
    return not record["error"] and not record["differences"]


def render_table(work: Sequence[Work], found: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield the rows of the table, one for each configuration."""
    columns = (
        "configuration",
        "data × tensor × pipeline",
        "stages",
        "seconds",
        "simulated GB",
        "planned GB",
        "difference",
    )
    yield f"| {' | '.join(columns)} |"
    yield f"| {' | '.join('---' for _ in columns)} |"
    for name in dict.fromkeys(one.shipped.name for one in list_shipped_in_order(work)):
        own = sorted((one for one in work if one.shipped.name == name), key=lambda one: one.stage)
        records = [found[one.key] for one in own if one.key in found and is_good(found[one.key])]
        failed = [found[one.key]["error"] or "differs" for one in own if one.key in found and one.key not in
                  {record["key"] for record in records}]  # fmt: skip
        cells = [
            name,
            describe(own[0].case),
            f"{len(records)} of {len(own)}" + (f" ({len(failed)} failed)" if failed else ""),
            f"{sum(record['duration_s'] for record in records):.0f}",
            _describe_span([record["peak_bytes"] for record in records]),
            _describe_span([record["planned_bytes"] for record in records]),
            max((record["planned_bytes"] / record["peak_bytes"] - 1 for record in records), key=abs, default=0.0),
        ]
        yield "| " + " | ".join(f"{cell:+.1%}" if isinstance(cell, float) else cell for cell in cells) + " |"


def list_shipped_in_order(work: Sequence[Work]) -> list[Work]:
    """Return the first work of each configuration, in the order of `list_shipped`."""
    order = [shipped.name for shipped in list_shipped()]
    return sorted(work, key=lambda one: order.index(one.shipped.name))


def _describe_span(sizes: Sequence[int]) -> str:
    if not sizes:
        return ""
    low, high = (f"{size / GIGABYTE:.2f}" for size in (min(sizes), max(sizes)))
    return low if low == high else f"{low} to {high}"


def main() -> int:
    """Compile, or print the table."""
    parser = argparse.ArgumentParser(description="Compile every stage of the shipped configurations.")
    parser.add_argument("results", type=Path, metavar="RESULTS.jsonl", help="file of results; appended to")
    parser.add_argument("--table", action="store_true", help="print the table instead of compiling")
    parser.add_argument("--layers-per-stage", type=int, default=2, metavar="K", help="layers per stage (default: 2)")
    parser.add_argument("--timeout", type=float, default=900, metavar="S", help="time limit per rank (default: 900)")
    args = parser.parse_args()
    if args.table:
        print("\n".join(render_table(list_work(args.layers_per_stage), read_results(args.results))))
        return 0
    return 0 if compile_all(args.results, layers_per_stage=args.layers_per_stage, timeout_s=args.timeout) else 1


if __name__ == "__main__":
    sys.exit(main())
