"""Write an HTML report of runs, or follow them in a browser: `python tools/report.py output/qwen3_tiny [--serve]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ascend_cpt.installed import require

require()

from ascend_cpt.errors import run_command
from ascend_cpt.monitor.report.serve import open_server
from ascend_cpt.monitor.report.write_report import write_report


def main() -> int:
    """Write the report, or serve it until Ctrl-C."""
    parser = argparse.ArgumentParser(
        description="Write a self-contained HTML report of one or more runs, with their curves overlaid."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder, such as output/qwen3_tiny")
    parser.add_argument(
        "--output", type=Path, metavar="HTML", help="file to write (default: report.html in the first run folder)"
    )
    parser.add_argument(
        "--serve", action="store_true", help="serve the report on this machine instead; the page updates during a run"
    )
    parser.add_argument("--port", type=int, metavar="PORT", help="port for --serve (default: a free one)")
    args = parser.parse_args()
    if args.serve:
        if args.output:
            parser.error("--output cannot be combined with --serve, which writes no file")
        return serve(args.runs, args.port or 0)
    if args.port is not None:
        parser.error("--port needs --serve")
    output: Path = args.output or args.runs[0] / "report.html"
    write_report(args.runs, output)
    print(f"wrote {output}")
    return 0


def serve(runs: list[Path], port: int) -> int:
    """Serve the report until Ctrl-C, which is the normal end."""
    with open_server(runs, port) as server:
        print(f"serving on {server.url} (only this machine can connect); Ctrl-C ends it", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("stopped")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
