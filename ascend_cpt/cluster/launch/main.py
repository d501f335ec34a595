"""The command behind scripts/msrun_launcher.sh: `python -m ascend_cpt.cluster.launch.main CMD [WORKER_NUM ...]`."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from pathlib import Path

from ascend_cpt.cluster.job.webhook import open_webhook
from ascend_cpt.cluster.launch.arguments import USAGE, LaunchSettings, UsageError, parse_launch
from ascend_cpt.cluster.launch.checks.examine import examine_before_launch
from ascend_cpt.cluster.launch.checks.preflight import check_dry_run, check_master, describe_process, find_stale_workers
from ascend_cpt.cluster.launch.coordination.attempts import run_job
from ascend_cpt.cluster.launch.job_secret import INSECURE_OPTION, find_secret, hold_channel_key
from ascend_cpt.cluster.launch.launch_lock import hold_launch_lock
from ascend_cpt.cluster.launch.schedulers import find_scheduler
from ascend_cpt.cluster.launch.terminal import print_status
from ascend_cpt.cluster.launch.workers.command import build_command, format_command
from ascend_cpt.cluster.messages.secret import STANDARD_INPUT
from ascend_cpt.errors import EXIT_OK, run_command


def main(arguments: list[str] | None = None) -> int:
    """Launch the job on this node and wait for its end. Raises ClusterError for an invalid launch."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in {"-h", "--help"}:
        print(USAGE)
        return EXIT_OK
    try:
        settings = parse_launch(arguments, os.environ, Path.cwd())
    except UsageError:
        print(USAGE, file=sys.stderr)
        raise
    if scheduler := find_scheduler(os.environ):
        master = f"{settings.master_addr}:{settings.master_port}"
        node = f"node {settings.node_rank} of {settings.num_launchers}, master {master}"
        print_status(f"started by {scheduler.name}: {node}")
    if os.environ.get("DRY_RUN") == "1":
        check_launch(settings)
        spare = f"node {settings.node_rank} is a spare: it starts no processes until it is needed"
        print(spare if settings.is_spare else format_command(build_command(settings)))
        return EXIT_OK
    secret = find_secret(settings.secret_source, os.environ, num_nodes=settings.num_nodes)
    if settings.num_nodes > 1 and settings.secret_source.insecure:
        print_status(
            f"warning: {INSECURE_OPTION}: anyone who reaches ports {settings.master_port} to {settings.launcher_port} "
            f"of {settings.master_addr} can stop, restart or change this job"
        )
    with hold_launch_lock(settings), hold_channel_key(secret) as key_file:
        check_master(settings, os.environ)
        for pid in find_stale_workers():
            process = describe_process(pid)
            print_status(f"warning: process {process} from an earlier launch is still running; end it with: kill {pid}")
        examine_before_launch(settings, os.environ)
        with closing(open_webhook(os.environ, print_status)) as webhook:
            return run_job(settings, os.environ, key_file, secret.launcher_key, webhook)


def check_launch(settings: LaunchSettings) -> None:
    """Raise ClusterError for anything the launch would refuse at once, without examining the node's state."""
    if settings.secret_source.path != STANDARD_INPUT:
        find_secret(settings.secret_source, os.environ, num_nodes=settings.num_nodes)
    open_webhook(os.environ)
    if warning := check_dry_run(settings, os.environ):
        print_status(f"warning: on this machine the launch would be refused: {warning}")


if __name__ == "__main__":
    sys.exit(run_command(main))
