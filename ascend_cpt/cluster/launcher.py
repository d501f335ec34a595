"""The command behind scripts/msrun_launcher.sh: `python -m ascend_cpt.cluster.launcher CMD [WORKER_NUM ...]`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ascend_cpt.cluster.arguments import USAGE, UsageError, parse_launch
from ascend_cpt.cluster.command import build_command, build_environment, format_command
from ascend_cpt.cluster.doctor import examine_before_launch
from ascend_cpt.cluster.job import run_job
from ascend_cpt.cluster.preflight import check_master, claim_place, describe_process, find_stale_workers
from ascend_cpt.cluster.schedulers import find_scheduler
from ascend_cpt.cluster.terminal import say
from ascend_cpt.errors import EXIT_OK, run_command
from ascend_cpt.softnpu.environment import prepare


def main(arguments: list[str] | None = None) -> int:
    """Launch this node's part of a job and wait for its end; raises ClusterError for a launch that cannot work."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in {"-h", "--help"}:
        print(USAGE)
        return EXIT_OK
    try:
        plan = parse_launch(arguments, os.environ, Path.cwd())
    except UsageError:
        print(USAGE, file=sys.stderr)
        raise
    if scheduler := find_scheduler(os.environ):
        place = f"node {plan.node_rank} of {plan.num_nodes}, meeting at {plan.master_addr}:{plan.master_port}"
        say(f"started by {scheduler.name}: {place}")
    # Built once here, with its errors in one place; each worker enters by itself.
    prepare(os.environ)
    command = build_command(plan)
    if os.environ.get("DRY_RUN") == "1":
        print(format_command(command))
        return EXIT_OK
    with claim_place(plan):
        check_master(plan, os.environ)
        for pid in find_stale_workers():
            say(f"warning: process {describe_process(pid)} is left from an earlier launch; end it with: kill {pid}")
        examine_before_launch(plan, os.environ)
        return run_job(plan, command, build_environment(plan, os.environ))


if __name__ == "__main__":
    sys.exit(run_command(main))
