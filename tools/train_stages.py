"""Train the stages of a file in sequence, each from the weights of the previous one (docs/long_context.md).

python tools/train_stages.py configs/stages/qwen3_tiny_256_512.yaml 2
python tools/train_stages.py stages.yaml 64 8 $MASTER 8118 $RANK        on every node

Exit codes: 0 all stages are complete, 3 a stage is held, 2 an error in the files or on the command line; other
codes are the launcher's. The same command resumes where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ascend_cpt.installed import require

require()

from ascend_cpt.errors import run_command
from ascend_cpt.run.launch.stages import StageOptions
from ascend_cpt.train_stages import train_stages


def parse_args() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", type=Path, metavar="STAGES", help="file with the stages")
    parser.add_argument("launch", nargs="*", metavar="LAUNCH", help="arguments of scripts/msrun_launcher.sh after CMD")
    parser.add_argument("--extend", metavar="STAGE", help="extend this stage after its cpt.train_tokens was raised")
    parser.add_argument("--advance", metavar="STAGE", help="continue after this stage even if it is held")
    parser.add_argument("--reshard", action="store_true", help="continue a stage in another parallel layout")
    parser.add_argument("--output_dir", metavar="PATH", help="parent of the run folders (default: the configurations')")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, print the plan of all stages and stop"
    )
    return parser.parse_args()


def main() -> int:
    """Train."""
    args = parse_args()
    options = StageOptions(extend=args.extend, advance=args.advance, output_dir=args.output_dir, reshard=args.reshard)
    return train_stages(args.stages, args.launch, options, dry_run=args.dry_run)


if __name__ == "__main__":
    sys.exit(run_command(main))
