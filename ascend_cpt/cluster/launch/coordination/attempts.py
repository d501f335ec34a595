"""A job's attempt loop on one node."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ascend_cpt.cluster.job.job_nodes import JOB_NODES_VARIABLE, JobNodes
from ascend_cpt.cluster.job.launcher_files import INTERRUPTION_CAUSE
from ascend_cpt.cluster.job.webhook import Webhook
from ascend_cpt.cluster.launch.arguments import LaunchSettings
from ascend_cpt.cluster.launch.coordination.coordinator_client import (
    CoordinatorClient,
    Start,
    open_coordinator_client,
)
from ascend_cpt.cluster.launch.coordination.restart_policy import HANG, End, Outcome, RestartDecision
from ascend_cpt.cluster.launch.signals import StopRequests, name_signal
from ascend_cpt.cluster.launch.terminal import print_status
from ascend_cpt.cluster.launch.workers.command import build_command, build_environment
from ascend_cpt.cluster.launch.workers.supervisor import Supervisor
from ascend_cpt.cluster.launch.workers.worker_log import archive_logs, read_cause, write_cause

POLL_S = 0.1


def run_job(settings: LaunchSettings, environ: Mapping[str, str], key_file: Path, key: bytes, webhook: Webhook) -> int:
    """Run the job and return the launcher's exit code. All its processes on this node have ended by then.

    `key` is the launchers' key, derived from the job secret, and `key_file` holds the key of the workers' channel.
    Restarts, hangs and failures are sent to `webhook`, except those that training reports itself.

    0: all workers on all nodes succeeded. 2: user error. 128 + n: stopped by signal n. 1: any other failure.
    """
    settings.fitting_file.unlink(missing_ok=True)
    cause = read_cause(settings.log_dir)
    with StopRequests() as requests, open_coordinator_client(settings, requests, key, cause=cause) as client:
        return _run_attempts(settings, environ, key_file, requests, client, webhook)


def _run_attempts(
    settings: LaunchSettings,
    environ: Mapping[str, str],
    key_file: Path,
    requests: StopRequests,
    client: CoordinatorClient,
    webhook: Webhook,
) -> int:
    is_first = True
    while True:
        decision = client.join()
        if isinstance(decision, Start):
            if decision.reason and settings.node_rank == 0:
                webhook.send("restart", _name_job(settings), decision.reason)
            settings.log_dir.mkdir(parents=True, exist_ok=True)
            if earlier := archive_logs(settings.log_dir):
                print_status(f"logs of the earlier {'launch' if is_first else 'attempt'} are in {earlier}")
            is_first = False
            supervisor = _prepare_attempt(settings, decision, environ, key_file, requests, client)
            outcome = supervisor.run()
            decision = client.report(outcome)
            write_cause(settings.log_dir, outcome.cause)
            reason = outcome.reason or client.ended_by or "another node failed"
            _send_notices(settings, outcome, decision, webhook, reason, is_hang=supervisor.reported_hang)
        if decision.message:
            print_status(decision.message)
        if requests.received:
            return 128 + requests.received[0]
        if not decision.again:
            return decision.code
        _wait(decision.delay_s, requests)
        if requests.received:
            print_status(f"{name_signal(requests.received[0])}: no restart")
            client.announce_stop(requests.received[0])
            return 128 + requests.received[0]


def _prepare_attempt(
    settings: LaunchSettings,
    start: Start,
    environ: Mapping[str, str],
    key_file: Path,
    requests: StopRequests,
    client: CoordinatorClient,
) -> Supervisor:
    """Return the supervisor of an attempt on the nodes of `start`."""
    per_node = settings.num_local_workers
    attempt = replace(settings, place=start.place, num_workers=len(start.hosts) * per_node)
    environment = build_environment(attempt, environ, key_file) | {INTERRUPTION_CAUSE: client.cause}
    if settings.can_lose_nodes:
        sizes = range(settings.min_nodes or settings.num_nodes, settings.num_nodes)
        nodes = JobNodes(
            attempt=start.attempt,
            hosts=start.hosts,
            num_nodes=settings.num_nodes,
            num_workers=settings.num_workers,
            smaller=tuple(size * per_node for size in sizes),
            reason=start.reason,
            fitting_file=str(settings.fitting_file),
        )
        environment[JOB_NODES_VARIABLE] = nodes.to_text()
    return Supervisor(attempt, build_command(attempt), environment, requests, client)


def _name_job(settings: LaunchSettings) -> str:
    return " ".join([settings.script.name, *settings.script_arguments])


def _send_notices(
    settings: LaunchSettings,
    outcome: Outcome,
    decision: RestartDecision,
    webhook: Webhook,
    reason: str,
    *,
    is_hang: bool,
) -> None:
    """Report a hang from the node that detected it, and restarts and the end of a failed job from node 0."""
    job = _name_job(settings)
    if is_hang:
        webhook.send("hang", job, outcome.reason.removeprefix(HANG))
    if settings.node_rank != 0 or outcome.end is End.CONTINUES:
        return
    if decision.again:
        webhook.send("restart", job, f"{reason}; {decision.message}")
    elif outcome.end in (End.FAILED, End.KILLED, End.CANCELLED):
        webhook.send("end", job, f"failed: {reason}; {decision.message}".rstrip("; "))


def _wait(delay_s: float, requests: StopRequests) -> None:
    deadline_s = time.monotonic() + delay_s
    while time.monotonic() < deadline_s and not requests.received:
        time.sleep(POLL_S)
