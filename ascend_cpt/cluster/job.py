"""A job on this node: attempt after attempt until one ends the job."""

from __future__ import annotations

import time
from collections.abc import Mapping

from ascend_cpt.cluster.arguments import LaunchPlan
from ascend_cpt.cluster.council import Council, open_council
from ascend_cpt.cluster.stop_requests import StopRequests, name_signal
from ascend_cpt.cluster.supervisor import Supervisor
from ascend_cpt.cluster.terminal import say
from ascend_cpt.cluster.worker_log import set_aside

POLL_S = 0.1


def run_job(plan: LaunchPlan, command: list[str], environment: Mapping[str, str]) -> int:
    """Run the job and return the launcher's exit code; no process of it is left on this node then.

    0: all workers of all nodes ended well. 2: the user's mistake. 128 + n: stopped by signal n. Else 1.
    """
    with StopRequests() as requests, open_council(plan, requests) as council:
        return _run_attempts(plan, command, environment, requests, council)


def _run_attempts(
    plan: LaunchPlan, command: list[str], environment: Mapping[str, str], requests: StopRequests, council: Council
) -> int:
    is_first = True
    while True:
        verdict = council.gather()
        if verdict is None:
            plan.log_dir.mkdir(parents=True, exist_ok=True)
            if earlier := set_aside(plan.log_dir):
                say(f"logs of the earlier {'launch' if is_first else 'attempt'} are in {earlier}")
            is_first = False
            verdict = council.conclude(Supervisor(plan, command, environment, requests, council).run())
        if verdict.message:
            say(verdict.message)
        if requests.received:
            return 128 + requests.received[0]
        if not verdict.again:
            return verdict.code
        _wait(verdict.delay_s, requests)
        if requests.received:
            say(f"{name_signal(requests.received[0])}: no restart")
            council.announce_stop(requests.received[0])
            return 128 + requests.received[0]


def _wait(delay_s: float, requests: StopRequests) -> None:
    deadline_s = time.monotonic() + delay_s
    while time.monotonic() < deadline_s and not requests.received:
        time.sleep(POLL_S)
