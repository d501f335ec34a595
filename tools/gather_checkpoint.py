"""Merge the parts of a checkpoint saved by nodes without shared storage, after copying them to this machine."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ascend_cpt.installed import require

require()

from ascend_cpt.checkpoint.gather import gather_checkpoint
from ascend_cpt.errors import run_command


def main() -> None:
    """Parse the command line and gather."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", type=Path, nargs="+", help="each node's iteration_* folder, or its run folder")
    parser.add_argument("--output", type=Path, required=True, help="the new checkpoint folder")
    parser.add_argument("--no-verify", action="store_true", help="do not verify the checksums of the files")
    args = parser.parse_args()
    logging.basicConfig(format="%(levelname)s: %(message)s")
    checkpoint = gather_checkpoint(args.parts, args.output, verify=not args.no_verify)
    print(
        f"{args.output}: step {checkpoint.state.step}, {len(checkpoint.state.files)} files from {len(args.parts)} nodes"
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
