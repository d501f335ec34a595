"""The whole rehearsal of a configuration: shrink, prepare, run the steps, print the table."""

from __future__ import annotations

import resource
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ascend_cpt.config.parallel_layout import ParallelLayout
from ascend_cpt.errors import CptError
from ascend_cpt.rehearsal.prepare import load_user_run, prepare, shrink_run
from ascend_cpt.rehearsal.steps import Rehearser
from ascend_cpt.rehearsal.table import render_table
from ascend_cpt.softnpu.build import check_machine
from ascend_cpt.softnpu.environment import check_mindspore
from ascend_cpt.softnpu.symbols import read_mindspore_version

FOLDER_PREFIX = "ascend_cpt_rehearsal_"


@dataclass(frozen=True, kw_only=True)
class RehearsalOptions:
    """The options of tools/rehearse.py."""

    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Dotted key → value, set over the configuration."""
    max_processes: int = 8
    timeout_s: float = 1800.0
    """Limit of each program that is started."""
    keep: bool = False
    """Keep the folder of a rehearsal that passed."""


def rehearse(config: Path, options: RehearsalOptions) -> bool:
    """Rehearse a configuration, print what happens, and return whether every step passed.

    The folder of the rehearsal is removed when it passes, unless it is to be kept.

    Raises:
        CptError: when the configuration cannot be trained or this machine cannot emulate NPUs.
    """
    started = time.monotonic()

    def report(line: str) -> None:
        print(f"[{time.monotonic() - started:4.0f} s] {line}", flush=True)

    check_machine()
    check_mindspore(read_mindspore_version())
    run = load_user_run(config, options.overrides)
    rehearsal, changes = shrink_run(run, options.max_processes)
    print(f"{config}: {describe_layout(run.layout)}\nrehearsed on emulated NPUs: {describe_layout(rehearsal.layout)}")
    print("\n".join(f"  {change}" for change in changes))
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
    keep = True
    try:
        try:
            prepared = prepare(run, rehearsal, folder)
            print("\n".join(f"  {name}: {origin}" for name, origin in prepared.origins.items()), flush=True)
            rehearser = Rehearser(
                prepared,
                validation_sets=tuple(dataset.name for dataset in run.validation),
                no_validation=explain_no_validation(rehearsal.layout),
                timeout_s=options.timeout_s,
                report=report,
            )
            passed = rehearser.run()
            keep = options.keep or not passed
        except CptError:
            # Its line says everything.
            keep = options.keep
            raise
        print(f"\n{render_table(rehearser.outcomes)}\n")
        ending = f"{'passed' if passed else 'FAILED'} in {time.monotonic() - started:.0f} s"
        print(f"{ending} ({read_processor_time():.0f} s of processor time)")
        return passed
    finally:
        if keep:
            print(f"kept: {folder}", flush=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def describe_layout(layout: ParallelLayout) -> str:
    """Return the devices and the sizes of a layout."""
    sizes = {
        "data": layout.data_parallel,
        "tensor": layout.tensor_parallel,
        "pipeline": layout.pipeline_parallel,
        "context": layout.context_parallel,
    }
    parts = [f"{name} {size}" for name, size in sizes.items() if size > 1] or ["data 1"]
    return f"{layout.world_size} {'device' if layout.world_size == 1 else 'devices'} = {' × '.join(parts)}"


def read_processor_time() -> float:
    """Return the seconds of processor time of this process and of all that it started and that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def explain_no_validation(layout: ParallelLayout) -> str:
    """Return why a rehearsal has no validation sets."""
    if layout.pipeline_parallel > 1:
        return "not supported with pipeline stages"
    return "the configuration has no validation sets"
