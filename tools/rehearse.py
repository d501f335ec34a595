"""Rehearse a cluster job on this machine: a shrunk copy of the configuration really runs, on emulated NPUs.

python tools/rehearse.py configs/llama3/cpt_llama3_70b.yaml
python tools/rehearse.py my_config.yaml --set cpt.document_attention=within --keep

It starts, trains, validates, saves, is killed, resumed, exported and verified, and compared with the same run on one
device (docs/rehearsal.md). Exit codes: 0 passed, 1 a step failed, 2 the configuration is wrong, or this machine cannot.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ascend_cpt.config.loader import parse_assignments
from ascend_cpt.errors import EXIT_FAILURE, EXIT_OK, run_command
from ascend_cpt.rehearsal.rehearse import RehearsalOptions, rehearse


def parse_args() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, metavar="CONFIG", help="configuration file of the cluster job")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override any key")
    parser.add_argument(
        "--processes", type=int, default=8, metavar="N", help="emulated devices at most [%(default)s]; about 1 GB each"
    )
    parser.add_argument("--timeout", type=float, default=1800, metavar="S", help="limit of each launch [%(default)g]")
    parser.add_argument("--keep", action="store_true", help="keep the folder (after a failure it is always kept)")
    args = parser.parse_args()
    if args.timeout <= 0:
        parser.error(f"--timeout {args.timeout:g}: must be above 0")
    return args


def main() -> int:
    """Rehearse."""
    args = parse_args()
    options = RehearsalOptions(
        overrides=parse_assignments(args.set), max_processes=args.processes, timeout_s=args.timeout, keep=args.keep
    )
    return EXIT_OK if rehearse(args.config, options) else EXIT_FAILURE


if __name__ == "__main__":
    sys.exit(run_command(main))
