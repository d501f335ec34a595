"""Check this node before training; each finding has a fix. On NPU nodes the launcher runs the same checks.

python tools/doctor.py
python tools/doctor.py --nodes 2 --master-addr 10.0.0.1 --node-rank 0 --output-dir /data/output --disk-gb 500
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ascend_cpt.installed import require

require("psutil")

from ascend_cpt.cluster.launch.arguments import parse_launch
from ascend_cpt.cluster.launch.checks.examine import examine_launch
from ascend_cpt.cluster.launch.job_secret import SECRET_OPTION, SECRET_VARIABLE
from ascend_cpt.cluster.messages.secret import INSECURE_VARIABLE
from ascend_cpt.cluster.node.doctor import Level, Node, examine
from ascend_cpt.errors import EXIT_FAILURE, EXIT_OK, run_command


def parse_arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        description="Check this node before training.",
        epilog="Exit code: 0 no errors (there may be warnings), 1 errors, 2 wrong arguments.",
    )
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="nodes of the job (default: 1)")
    parser.add_argument("--local-workers", type=int, default=8, metavar="N", help="workers per node (default: 8)")
    parser.add_argument("--master-addr", metavar="HOST", default="127.0.0.1", help="address of node 0")
    parser.add_argument("--master-port", type=int, default=8118, metavar="PORT", help="master port (default: 8118)")
    parser.add_argument("--node-rank", type=int, default=0, metavar="N", help="rank of this node (default: 0)")
    parser.add_argument("--output-dir", type=Path, default=Path("output"), metavar="PATH", help="output folder")
    parser.add_argument(
        "--disk-gb",
        type=float,
        default=1,
        metavar="GB",
        help="disk space needed (see run_cpt.py --dry-run)",
    )
    parser.add_argument(
        SECRET_OPTION,
        metavar="PATH",
        help=f"file with the job secret, for several nodes ({SECRET_VARIABLE}; default: ~/.config/ascend_cpt/secret)",
    )
    return parser.parse_args()


def main() -> int:
    """Print the findings. Return 1 if any finding is an error."""
    args = parse_arguments()
    workers, each = str(args.nodes * args.local_workers), str(args.local_workers)
    place = ["run_cpt.py", workers, each, args.master_addr, str(args.master_port), str(args.node_rank)]
    if args.secret_file is not None:
        place = [SECRET_OPTION, args.secret_file, *place]
    secret_variables = {name: os.environ.get(name, "") for name in (SECRET_VARIABLE, INSECURE_VARIABLE)}
    settings = parse_launch(place, secret_variables, Path.cwd())
    node = Node(
        environ=os.environ,
        num_local_workers=args.local_workers,
        num_nodes=args.nodes,
        output_dir=args.output_dir,
        disk_gb=args.disk_gb,
    )
    findings = [*examine(node), *examine_launch(settings, os.environ)]
    for finding in findings:
        print(finding)
    counts = {level: sum(finding.level is level for finding in findings) for level in Level}
    print(", ".join(f"{count} {level.value}" for level, count in counts.items() if count))
    return EXIT_FAILURE if counts[Level.ERROR] else EXIT_OK


if __name__ == "__main__":
    sys.exit(run_command(main))
