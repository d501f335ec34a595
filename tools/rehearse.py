"""Rehearse a cluster job on this machine before you book the cluster: run a small version of it on emulated NPUs.

python tools/rehearse.py configs/llama3/cpt_llama3_70b.yaml

The parallel layout is kept as far as --processes allows; layers, widths, vocabulary and rows are reduced. The job
trains, validates, saves, loses a worker, resumes and exports; then its losses and weights are compared with those of
the same run on one device. See docs/rehearsal.md.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ascend_cpt.installed import require

require()

from ascend_cpt.config.loader import load_config, parse_assignments
from ascend_cpt.errors import EXIT_FAILURE, EXIT_OK, run_command
from ascend_cpt.rehearsal.rehearse import rehearse
from ascend_cpt.rehearsal.steps import render


def parse_arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit code: 0 every step passed, 1 a step failed, 2 the configuration or this machine is not suitable.",
    )
    parser.add_argument("config", type=Path, metavar="YAML", help="configuration for Ascend; its data need not exist")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override any key")
    parser.add_argument("--nodes", type=int, metavar="N", help="nodes of the cluster (default: as the layout requires)")
    parser.add_argument("--devices-per-node", type=int, default=8, metavar="N", help="devices per node (default: 8)")
    parser.add_argument(
        "--processes", type=int, default=8, metavar="N", help="maximum number of emulated devices (default: 8)"
    )
    parser.add_argument(
        "--timeout", type=float, default=1800, metavar="S", help="time limit per launch in seconds (default: 1800)"
    )
    parser.add_argument("--keep", action="store_true", help="keep the folder; after a failure it is always kept")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="new folder to work in (default: under /tmp)")
    args = parser.parse_args()
    for name in ("nodes", "devices_per_node", "processes", "timeout"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            parser.error(f"--{name.replace('_', '-')} {value}: must be above 0")
    if args.folder is not None and args.folder.exists():
        parser.error(f"--folder {args.folder}: already exists; choose a new folder")
    return args


def read_processor_time() -> float:
    """Return the CPU time in seconds of this process and its ended child processes."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> int:
    """Rehearse and print the table."""
    args = parse_arguments()
    config = load_config(args.config, parse_assignments(args.set))
    folder = args.folder or Path(tempfile.mkdtemp(prefix="rehearsal_"))
    start_s, is_kept = time.monotonic(), args.keep
    try:
        steps = rehearse(
            config,
            folder.absolute(),
            max_processes=args.processes,
            num_nodes=args.nodes,
            devices_per_node=args.devices_per_node,
            timeout_s=args.timeout,
            report=lambda line: print(f"[{time.monotonic() - start_s:4.0f} s] {line}", file=sys.stderr, flush=True),
        )
        is_kept = args.keep or not steps.passed
    finally:
        if not is_kept:
            shutil.rmtree(folder, ignore_errors=True)
    print(render(steps.steps))
    result = "passed" if steps.passed else "FAILED"
    times = f"{time.monotonic() - start_s:.0f} s ({read_processor_time():.0f} s of CPU time)"
    print(f"\n{args.config}: rehearsal {result} in {times}")
    if is_kept:
        print(f"data, runs and logs: {folder}")
    return EXIT_OK if steps.passed else EXIT_FAILURE


if __name__ == "__main__":
    sys.exit(run_command(main))
