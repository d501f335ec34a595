"""Node checks before launch: master address and port, and workers left over from an earlier launch."""

from __future__ import annotations

import errno
import ipaddress
import socket
import time
from collections.abc import Mapping

import psutil

from ascend_cpt.cluster.launch.arguments import LaunchSettings
from ascend_cpt.cluster.launch.workers import worker_entry
from ascend_cpt.errors import ClusterError

ALLOW_LOCAL_MASTER = "ASCEND_CPT_ALLOW_LOCAL_MASTER"
MAX_COMMAND_CHARACTERS = 100


def check_master(settings: LaunchSettings, environ: Mapping[str, str]) -> None:
    """Raise ClusterError when MASTER_ADDR:MASTER_PORT cannot work, as far as can be checked on this node."""
    check_reachable(settings, environ)
    if settings.node_rank == 0 and settings.num_workers > 1:
        check_port(resolve_address(settings.master_addr), settings)


def check_reachable(settings: LaunchSettings, environ: Mapping[str, str]) -> None:
    """Raise ClusterError when the other nodes cannot reach MASTER_ADDR, because it is a loopback address."""
    address = resolve_address(settings.master_addr)
    if settings.num_nodes > 1 and address.is_loopback and environ.get(ALLOW_LOCAL_MASTER) != "1":
        raise ClusterError(
            f"MASTER_ADDR {settings.master_addr} is a loopback address, but the job has {settings.num_nodes} nodes; "
            "give an address of node 0 that the other nodes can reach "
            f"({ALLOW_LOCAL_MASTER}=1 allows several nodes on one machine)"
        )


def check_dry_run(settings: LaunchSettings, environ: Mapping[str, str]) -> str:
    """Return a warning if the master cannot work on this machine, which may differ from the launch machine.

    Raises:
        ClusterError: the launch would be refused on any machine.
    """
    try:
        resolve_address(settings.master_addr)
    except ClusterError as error:
        return str(error)
    check_reachable(settings, environ)
    try:
        check_master(settings, environ)
    except ClusterError as error:
        return str(error)
    return ""


def resolve_address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return a host name's first address, as msrun does. Raise ClusterError if it cannot be resolved."""
    try:
        return ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        pass
    try:
        return ipaddress.ip_address(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise ClusterError(f"MASTER_ADDR {name} is unknown on this machine: {error.strerror or error}") from error


def check_port(address: ipaddress.IPv4Address | ipaddress.IPv6Address, settings: LaunchSettings) -> None:
    """Raise ClusterError when node 0 cannot listen on the master's address and port."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        # As in MindSpore's scheduler, so that an earlier job's connections in TIME_WAIT do not block the port.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((str(address), settings.master_port))
            listener.listen()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ClusterError(
                    f"MASTER_PORT {settings.master_port} is in use on "
                    f"{settings.master_addr}{name_listener(settings.master_port)}; "
                    "choose another"
                ) from error
            raise ClusterError(
                f"MASTER_ADDR {settings.master_addr} is not an address of this machine ({error.strerror}), but "
                "NODE_RANK 0 must run there"
            ) from error


def name_listener(port: int) -> str:
    """Return " by process ..." for the process that listens on a local port, or "" if unknown."""
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
            return f" by process {describe_process(connection.pid)}"
    return ""


def describe_process(pid: int) -> str:
    """Return the id, user, start time and command of a process."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            command = " ".join(" ".join(process.cmdline()).split()) or process.name()
            started = time.strftime("%Y-%m-%d %H:%M", time.localtime(process.create_time()))
            return f"{pid} ({process.username()}, since {started}: {command[:MAX_COMMAND_CHARACTERS]})"
    except psutil.Error:
        return str(pid)


def find_stale_workers() -> list[int]:
    """Return the ids of worker processes whose launcher has ended."""
    stale = []
    for process in psutil.process_iter():
        try:
            launcher = process.environ().get(worker_entry.LAUNCHER_PID, "")
            is_worker = launcher.isdecimal() and process.status() != psutil.STATUS_ZOMBIE
            if is_worker and not _is_older(int(launcher), process):
                stale.append(process.pid)
        except (psutil.Error, OSError):
            continue
    return sorted(stale)


def _is_older(pid: int, process: psutil.Process) -> bool:
    """Return whether `pid` runs and is older than `process`. A younger process has reused an old launcher's id."""
    try:
        older: bool = psutil.Process(pid).create_time() <= process.create_time()
    except psutil.Error:
        return False
    return older
