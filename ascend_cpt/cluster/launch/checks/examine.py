"""Node checks that the launcher runs before starting a job."""

from __future__ import annotations

from collections.abc import Mapping

from ascend_cpt.cluster.launch.arguments import LaunchSettings
from ascend_cpt.cluster.launch.checks.preflight import check_master, describe_process, find_stale_workers
from ascend_cpt.cluster.launch.job_secret import INSECURE_OPTION, find_default_file, find_secret
from ascend_cpt.cluster.launch.terminal import print_status
from ascend_cpt.cluster.messages.secret import INSECURE_VARIABLE, STANDARD_INPUT
from ascend_cpt.cluster.node.doctor import Finding, Level, Node, examine
from ascend_cpt.cluster.node.npu_tools import has_npu
from ascend_cpt.errors import ClusterError

# Time limit for npu-smi during a launch.
LAUNCH_LIMIT_S = 2.0


def describe_node(settings: LaunchSettings, environ: Mapping[str, str], *, limit_s: float) -> Node:
    """Describe this node for the checks."""
    return Node(
        environ=environ,
        num_local_workers=settings.num_local_workers,
        num_nodes=settings.num_nodes,
        output_dir=settings.log_dir,
        limit_s=limit_s,
    )


def examine_launch(settings: LaunchSettings, environ: Mapping[str, str]) -> list[Finding]:
    """Check the master address and port and the job secret, and look for processes of an earlier launch."""
    found = []
    for pid in find_stale_workers():
        text = f"process {describe_process(pid)} from an earlier launch is still running"
        found.append(Finding(level=Level.WARNING, check="processes", text=text, fix=f"kill {pid}"))
    try:
        check_master(settings, environ)
        text = f"node {settings.node_rank} of {settings.num_launchers}"
        found.append(Finding(level=Level.OK, check="launch", text=text))
    except ClusterError as error:
        found.append(Finding(level=Level.ERROR, check="launch", text=str(error)))
    if settings.num_nodes > 1:
        found.append(check_secret(settings, environ))
        text = "clocks and network connections of the other nodes: checked when the launchers connect"
        found.append(Finding(level=Level.SKIPPED, check="other nodes", text=text))
    return found


def check_secret(settings: LaunchSettings, environ: Mapping[str, str]) -> Finding:
    """Check that this node has a job secret that only its user can read, but not that all nodes have the same one."""
    source = settings.secret_source
    if source.insecure:
        text = "the job starts without a secret, so anyone who reaches its ports can stop it"
        fix = f"drop {INSECURE_OPTION} ({INSECURE_VARIABLE}) and give every node the same secret"
        return Finding(level=Level.WARNING, check="secret", text=text, fix=fix)
    if source.path == STANDARD_INPUT:
        return Finding(level=Level.SKIPPED, check="secret", text="read from standard input at the start of the job")
    try:
        find_secret(source, environ, num_nodes=settings.num_nodes)
    except ClusterError as error:
        return Finding(level=Level.ERROR, check="secret", text=str(error))
    path = source.path or find_default_file(environ)
    return Finding(level=Level.OK, check="secret", text=f"{path} can be read only by its owner")


def examine_before_launch(settings: LaunchSettings, environ: Mapping[str, str]) -> None:
    """Print the warnings and errors from the node checks. Skipped without NPUs or with SKIP_DOCTOR=1.

    Raises ClusterError when a check reports an error.
    """
    if not has_npu() or environ.get("SKIP_DOCTOR") == "1":
        return
    findings = examine(describe_node(settings, environ, limit_s=LAUNCH_LIMIT_S))
    for finding in findings:
        if finding.level in (Level.WARNING, Level.ERROR):
            print_status(f"doctor: {finding}")
    if any(finding.level is Level.ERROR for finding in findings):
        raise ClusterError("the doctor found errors (above); fix them, or start with SKIP_DOCTOR=1")
