"""Write an HTML report of runs: `python tools/report.py output/qwen3_tiny`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ascend_cpt.installed import require

require()

from ascend_cpt.errors import run_command
from ascend_cpt.monitor.report.write_report import write_report


def main() -> int:
    """Write the report."""
    parser = argparse.ArgumentParser(
        description="Write a self-contained HTML report of one or more runs, with their curves overlaid."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder, such as output/qwen3_tiny")
    parser.add_argument(
        "--output", type=Path, metavar="HTML", help="file to write (default: report.html in the first run folder)"
    )
    args = parser.parse_args()
    output: Path = args.output or args.runs[0] / "report.html"
    write_report(args.runs, output)
    print(f"wrote {output}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
