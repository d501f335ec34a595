"""Summarize runs: results and paths of their files: `python tools/summarize_run.py output/qwen3_tiny`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ascend_cpt.installed import require

require()

from ascend_cpt.errors import run_command
from ascend_cpt.monitor.summary import summarize_run


def main() -> int:
    """Print the summary of each run folder."""
    parser = argparse.ArgumentParser(description="Print the results of runs and the paths of their files.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder, such as output/qwen3_tiny")
    for run in parser.parse_args().runs:
        print("\n".join(summarize_run(run)))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
