"""Examines a node before a launch."""

from __future__ import annotations

from collections.abc import Mapping

from ascend_cpt.cluster.launch.arguments import LaunchSettings
from ascend_cpt.cluster.launch.preflight import check_master, describe_process, find_stale_workers
from ascend_cpt.cluster.launch.terminal import say
from ascend_cpt.cluster.node.doctor import Finding, Level, Node, examine
from ascend_cpt.cluster.node.npu_tools import (
    has_npu,
)
from ascend_cpt.errors import ClusterError

# What npu-smi may take when a launch waits for it.
LAUNCH_LIMIT_S = 2.0


def describe_node(settings: LaunchSettings, environ: Mapping[str, str], *, limit_s: float) -> Node:
    """Return this machine as `plan` would use it."""
    return Node(
        environ=environ,
        num_local_workers=settings.num_local_workers,
        num_nodes=settings.num_nodes,
        output_dir=settings.log_dir,
        limit_s=limit_s,
    )


def examine_place(settings: LaunchSettings, environ: Mapping[str, str]) -> list[Finding]:
    """Return what is wrong with this node's place in a job: address, port, processes of an earlier launch."""
    found = []
    for pid in find_stale_workers():
        text = f"process {describe_process(pid)} is left from an earlier launch"
        found.append(Finding(level=Level.WARNING, check="processes", text=text, fix=f"kill {pid}"))
    try:
        check_master(settings, environ)
        found.append(Finding(level=Level.OK, check="place", text=f"node {settings.node_rank} of {settings.num_nodes}"))
    except ClusterError as error:
        found.append(Finding(level=Level.ERROR, check="place", text=str(error)))
    if settings.num_nodes > 1:
        text = "clock and reach of the other nodes: they are compared when the launchers meet"
        found.append(Finding(level=Level.SKIPPED, check="other nodes", text=text))
    return found


def examine_before_launch(settings: LaunchSettings, environ: Mapping[str, str]) -> None:
    """Say what is not good about this node, where it has NPUs and SKIP_DOCTOR is not 1.

    Raises ClusterError when something would make the job fail.
    """
    if not has_npu() or environ.get("SKIP_DOCTOR") == "1":
        return
    findings = examine(describe_node(settings, environ, limit_s=LAUNCH_LIMIT_S))
    for finding in findings:
        if finding.level in (Level.WARNING, Level.ERROR):
            say(f"doctor: {finding}")
    if num_errors := sum(finding.level is Level.ERROR for finding in findings):
        raise ClusterError(f"the doctor found {num_errors} errors (above); mend them, or start with SKIP_DOCTOR=1")
