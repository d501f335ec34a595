"""A job's attempt loop on one node."""

from __future__ import annotations

import time
from collections.abc import Mapping

from ascend_cpt.cluster.job.launcher_files import INTERRUPTION_CAUSE
from ascend_cpt.cluster.job.webhook import Webhook
from ascend_cpt.cluster.launch.arguments import LaunchSettings
from ascend_cpt.cluster.launch.coordination.coordinator_client import CoordinatorClient, open_coordinator_client
from ascend_cpt.cluster.launch.coordination.restart_policy import HANG, End, Outcome, RestartDecision
from ascend_cpt.cluster.launch.signals import StopRequests, name_signal
from ascend_cpt.cluster.launch.terminal import print_status
from ascend_cpt.cluster.launch.workers.supervisor import Supervisor
from ascend_cpt.cluster.launch.workers.worker_log import archive_logs, read_cause, write_cause

POLL_S = 0.1


def run_job(
    settings: LaunchSettings, command: list[str], environment: Mapping[str, str], key: bytes, webhook: Webhook
) -> int:
    """Run the job and return the launcher's exit code. All its processes on this node have ended by then.

    `key` is the launchers' key, derived from the job secret. Restarts, hangs and failures are sent to `webhook`, except
    those that training reports itself.

    0: all workers on all nodes succeeded. 2: user error. 128 + n: stopped by signal n. 1: any other failure.
    """
    cause = read_cause(settings.log_dir)
    with StopRequests() as requests, open_coordinator_client(settings, requests, key, cause=cause) as client:
        return _run_attempts(settings, command, environment, requests, client, webhook)


def _run_attempts(
    settings: LaunchSettings,
    command: list[str],
    environment: Mapping[str, str],
    requests: StopRequests,
    client: CoordinatorClient,
    webhook: Webhook,
) -> int:
    is_first = True
    while True:
        decision = client.join()
        if decision is None:
            settings.log_dir.mkdir(parents=True, exist_ok=True)
            if earlier := archive_logs(settings.log_dir):
                print_status(f"logs of the earlier {'launch' if is_first else 'attempt'} are in {earlier}")
            is_first = False
            variables = {**environment, INTERRUPTION_CAUSE: client.cause}
            supervisor = Supervisor(settings, command, variables, requests, client)
            outcome = supervisor.run()
            decision = client.report(outcome)
            write_cause(settings.log_dir, outcome.cause)
            _send_notices(settings, outcome, decision, webhook, is_hang=supervisor.reported_hang)
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


def _send_notices(
    settings: LaunchSettings, outcome: Outcome, decision: RestartDecision, webhook: Webhook, *, is_hang: bool
) -> None:
    """Report a hang from the node that detected it, and restarts and the end of a failed job from node 0."""
    job = " ".join([settings.script.name, *settings.script_arguments])
    if is_hang:
        webhook.send("hang", job, outcome.reason.removeprefix(HANG))
    if settings.node_rank != 0 or outcome.end is End.CONTINUES:
        return
    if decision.again:
        webhook.send("restart", job, f"{outcome.reason or 'another node failed'}; {decision.message}")
    elif outcome.end in (End.FAILED, End.KILLED, End.CANCELLED):
        webhook.send("end", job, f"failed: {outcome.reason or 'another node failed'}; {decision.message}".rstrip("; "))


def _wait(delay_s: float, requests: StopRequests) -> None:
    deadline_s = time.monotonic() + delay_s
    while time.monotonic() < deadline_s and not requests.received:
        time.sleep(POLL_S)
