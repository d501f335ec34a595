"""Prints how fast the shipped configurations are planned: before the rebuild, now, and the best layout of the search.

python benchmarks/plan_shipped.py                the first table of docs/planning.md, "Shipped configurations"
python benchmarks/plan_shipped.py --published    the second: plans beside speeds that upstream published

All speeds are planned; none was measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from ascend_cpt.config.loader import load_config
from ascend_cpt.config.parallel_layout import uses_cpu
from ascend_cpt.config.train_stages import load_stages
from ascend_cpt.plan.case import GIGABYTE, TrainingCase
from ascend_cpt.plan.estimate import Estimate, needed_bytes
from ascend_cpt.plan.machines import EFFICIENCIES, find_machine
from ascend_cpt.plan.memory import estimate_memory
from ascend_cpt.plan.speed.figures import Figure, load_figures
from ascend_cpt.plan.speed.throughput import estimate_step
from ascend_cpt.run.planning.plan_run import Cluster, plan_run
from ascend_cpt.run.planning.suggest_runs import Goal, suggest_runs

BEFORE = "69780c1"
"""The last commit with the layouts that were chosen by hand."""
MACHINE = "910B"
FIGURES = load_figures(REPOSITORY / "benchmarks/plan_figures.yaml")


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """A configuration, or a stage from a file in configs/stages."""

    name: str
    path: Path
    overrides: Mapping[str, Any]
    num_nodes: int | None = None

    def plan(self, device: str = MACHINE) -> Estimate:
        """Return the configuration's plan."""
        return plan_run(self.path, dict(self.overrides), self.make_cluster(device))[1]

    def find_best(self) -> tuple[Estimate, Estimate]:
        """Return the configuration's plan and the fastest plan found by the search, which may be the same."""
        found = suggest_runs(self.path, self.overrides, self.make_cluster(MACHINE), Goal())
        assert found.given is not None, found.problem
        return found.given, max((found.given, *found.plans), key=lambda plan: plan.time.tokens_per_s)

    def make_cluster(self, device: str) -> Cluster:
        """Return the cluster that the configuration is planned for."""
        layout = load_config(self.path, self.overrides).mindformers["parallel_config"]
        sizes = ("data_parallel", "model_parallel", "pipeline_stage", "context_parallel")
        devices = min(math.prod(layout.get(size, 1) for size in sizes), 8)
        return Cluster(num_nodes=self.num_nodes, devices_per_node=devices, device=device, device_bytes=64 * GIGABYTE)


def list_shipped(root: Path = REPOSITORY) -> Iterator[Shipped]:
    """Yield all Ascend configurations, recipes and stages in `root`/configs."""
    for folder in ("llama2", "llama3", "qwen2", "qwen3", "recipes"):
        for path in sorted((root / "configs" / folder).glob("*.yaml")):
            if not uses_cpu(load_config(path)):
                yield Shipped(name=path.stem, path=path, overrides={})
    for path in sorted((root / "configs/stages").glob("*.yaml")):
        for stage in load_stages(path):
            config = path.parent / stage.config
            if not uses_cpu(load_config(config, stage.set)):
                yield Shipped(name=f"{path.stem}, {stage.name}", path=config, overrides=stage.set, num_nodes=8)


def share_of_memory(plan: Estimate) -> float:
    """Return the largest memory need of any stage as a fraction of the usable memory."""
    return max(map(needed_bytes, plan.stages)) / plan.limits.usable_bytes


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A published speed next to the shipped configuration's plan on the same machine, per device."""

    name: str
    figure: Figure
    planned: float
    own: float
    """Plan of the layout that reached the figure."""
    own_gigabytes: float
    """Its need with weights in float32, as in the shipped configurations."""
    usable_gigabytes: float

    @property
    def reasons(self) -> list[str]:
        """Why the plan does not reach the published speed; empty if it does, or if no reason is known."""
        if self.planned >= self.figure.tokens_per_device_s:
            return []
        found = []
        if self.own < self.figure.tokens_per_device_s:
            found.append(f"its own layout is planned at {self.own:,.0f}")
        if self.own_gigabytes > self.usable_gigabytes:
            found.append(f"its own layout needs {self.own_gigabytes:.0f} GB")
        return found


def compare(shipped: Shipped) -> Iterator[Comparison]:
    """Yield the comparisons with all figures for the same model and row length."""
    case = shipped.plan().case
    for figure in FIGURES:
        if figure.case.parameters != case.parameters or figure.case.seq_length != case.seq_length:
            continue
        plan = shipped.plan(figure.device)
        own = estimate_step(figure.case, find_machine(figure.device), EFFICIENCIES[figure.framework])
        in_float32 = estimate_memory(dataclasses.replace(figure.case, param_bytes=4))
        yield Comparison(
            name=shipped.name,
            figure=figure,
            planned=plan.time.tokens_per_device_s,
            own=own.tokens_per_s / figure.case.layout.world_size,
            own_gigabytes=max(map(needed_bytes, in_float32)) / GIGABYTE,
            usable_gigabytes=plan.limits.usable_bytes / GIGABYTE,
        )


def print_shipped(before: Path) -> None:
    """Print the first table. `before` has the old configurations."""
    old = {shipped.name: shipped for shipped in list_shipped(before)}
    print("| configuration | devices | before | tokens/s | now | tokens/s | best | now / best | published | memory |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for shipped in list_shipped():
        was, (now, best) = old[shipped.name].plan(), shipped.find_best()
        published = [
            f"{one.figure.tokens_per_device_s:,.0f}" for one in compare(shipped) if one.figure.device == MACHINE
        ]
        print(
            f"| {shipped.name} | {now.case.layout.world_size} | {describe(was.case)} | "
            f"{was.time.tokens_per_device_s:,.0f} | {describe(now.case)} | {now.time.tokens_per_device_s:,.0f} | "
            f"{best.time.tokens_per_device_s:,.0f} | {now.time.tokens_per_s / best.time.tokens_per_s:.0%} | "
            f"{', '.join(published)} | {share_of_memory(now):.0%} |".replace("|  |", "| |"),
            flush=True,
        )


def print_published() -> None:
    """Print the second table."""
    print("| configuration | published by | machine | published | planned | reason if it is less |")
    print("| --- | --- | --- | --- | --- | --- |")
    for shipped in list_shipped():
        if shipped.path.parent.name in ("recipes", "stages") or shipped.overrides:
            continue
        for found in compare(shipped):
            figure = found.figure
            print(
                f"| {found.name} | {figure.framework} {figure.name} | {figure.device} | "
                f"{figure.tokens_per_device_s:,.0f} | {found.planned:,.0f} | {'; '.join(found.reasons)} |".replace(
                    "|  |", "| |"
                )
            )


def describe(case: TrainingCase) -> str:
    """Return data × tensor × pipeline (× context)."""
    layout = case.layout
    sizes = [layout.data_parallel, layout.tensor_parallel, layout.pipeline_parallel]
    return " × ".join(map(str, sizes if layout.context_parallel == 1 else [*sizes, layout.context_parallel]))


def main() -> None:
    """Print one of the tables."""
    parser = argparse.ArgumentParser(description="Plan the shipped configurations.")
    parser.add_argument("--published", action="store_true", help="compare with published speeds")
    parser.add_argument("--before", default=BEFORE, metavar="COMMIT", help="commit with the old configurations")
    args = parser.parse_args()
    if args.published:
        print_published()
        return
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "configs.tar"
        command = ["git", "archive", "--output", str(archive), args.before, "configs"]
        subprocess.run(command, cwd=REPOSITORY, check=True)
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        print_shipped(Path(folder))


if __name__ == "__main__":
    main()
