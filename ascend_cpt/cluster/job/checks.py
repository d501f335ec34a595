"""Checks that the nodes of a job share storage as configured and hold the same data and configuration."""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, TimeoutError
from pathlib import Path
from typing import Any, TypeVar

from ascend_cpt.cluster.job.channel import JobChannel
from ascend_cpt.errors import ClusterError

PROBE_NAME = ".storage_probe"
REPORT_S = 10.0  # interval between reports during long work; far below the channel timeout
VISIBILITY_TIMEOUT_S = 5.0  # new files may appear on network file systems with a delay

T = TypeVar("T")


def check_topology(channel: JobChannel, run_dir: Path, *, shared: bool) -> None:
    """Check that all nodes use one run folder (`shared`), or that each node uses its own (not `shared`).

    Rank 0 writes a random token to its run folder, and the others look for the token in theirs.

    Raises:
        ClusterError: when the storage is not as declared. The message names a node.
    """
    if len({member.node for member in channel.members}) == 1:
        return
    probe = run_dir / PROBE_NAME
    is_writer = channel.rank == 0
    token = secrets.token_hex(16) if is_writer else ""
    if is_writer:
        probe.write_text(token, encoding="utf-8")
    try:
        token = channel.all_gather("storage token", token)[0]
        is_visible = is_writer or _wait_for_probe(probe, token, wait_s=VISIBILITY_TIMEOUT_S if shared else 0.0)
        answers = channel.all_gather("storage token visible", is_visible)
    finally:
        if is_writer:
            probe.unlink(missing_ok=True)
    first = channel.members[0]
    for member, seen in zip(channel.members, answers, strict=True):
        if shared and not seen:
            raise ClusterError(
                f"{member} does not see what {first} writes to {run_dir.absolute()}: this folder is not on shared "
                "storage; put output_dir on storage that all nodes share, or set cpt.storage.shared: false "
                "(--no-shared-storage) so that every node has its own output"
            )
        if not shared and seen and member.node != first.node:
            raise ClusterError(
                f"{member} and {first} share {run_dir.absolute()}, but cpt.storage.shared is false: they would "
                "overwrite each other's files; drop --no-shared-storage, or give each node its own output_dir"
            )


def _wait_for_probe(probe: Path, token: str, wait_s: float) -> bool:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            if probe.read_text(encoding="utf-8") == token:
                return True
        except OSError:
            pass
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.1)


def check_same(channel: JobChannel, topic: str, facts: Mapping[str, Any]) -> None:
    """Check that every process has the same `facts` (JSON values by name) as rank 0.

    Raises:
        ClusterError: when values differ. The message names the first such node and the values.
    """
    # All processes send a digest. Only on a mismatch do two processes send the full facts, which are long.
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    digests = channel.all_gather(topic, digest)
    first_different = next((rank for rank, other in enumerate(digests) if other != digests[0]), None)
    if first_different is None:
        return
    own_facts = dict(facts) if channel.rank in (0, first_different) else None
    answers = channel.all_gather(f"{topic} in full", own_facts)
    expected, found = answers[0], answers[first_different]
    what = "; ".join(
        f"{name}: {expected.get(name)} → {found.get(name)}"
        for name in sorted({*expected, *found})
        if expected.get(name) != found.get(name)
    )
    raise ClusterError(
        f"{channel.members[first_different]} differs from {channel.members[0]} in its {topic} ({what}); make the "
        "nodes identical and start again"
    )


def wait_for_work(channel: JobChannel, topic: str, work: Callable[[], T]) -> T:
    """Run `work` while reporting to the other processes, and return its result once all have finished.

    Each process may take as long as it needs without hitting the channel timeout.

    Raises:
        Exception: whatever `work` raises.
        ClusterError: when another process failed.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # re-raised in the main thread
            outcome.set_exception(error)

    threading.Thread(target=run, name=topic, daemon=True).start()
    while True:
        try:
            outcome.result(timeout=REPORT_S)
            is_done = True
        except TimeoutError:
            if outcome.done():
                raise
            is_done = False
        if all(channel.all_gather(topic, is_done)):
            return outcome.result()


def choose_common_step(channel: JobChannel, complete_steps: list[int]) -> tuple[int | None, list[str]]:
    """Return the newest step complete on every node, or None, and a line for each newer incomplete step.

    Args:
        channel: The channel between the processes of the job.
        complete_steps: Steps with a complete checkpoint on this process's node.
    """
    answers = [set(steps) for steps in channel.all_gather("complete steps", complete_steps)]
    common = set.intersection(*answers)
    newest = max(common, default=None)
    lines = []
    for step in sorted(set.union(*answers), reverse=True):
        if newest is not None and step <= newest:
            break
        missing = {str(m): None for m, steps in zip(channel.members, answers, strict=True) if step not in steps}
        lines.append(f"step {step}: not complete on {', '.join(missing)}")
    return newest, lines
