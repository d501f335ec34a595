"""Checks a node before training and offers a fix for each problem found.

Sources: the CANN versions accepted by MindSpore 2.9.0 (mindspore/run_check/_check_version.py); the toolkit's own list
of compatible drivers; and, for HCCL ports, CANN's reference for HCCL_IF_BASE_PORT.
"""

from __future__ import annotations

import ipaddress
import resource
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import psutil

from ascend_cpt.cluster.node.npu_tools import (
    CONNECT_TIMEOUT,
    DEFAULT_CONNECT_TIMEOUT_S,
    DRIVER_VERSION_FILE,
    Status,
    find_cann_version,
    is_compatible,
    parse_version_file,
    query_npu_smi,
    shorten_version,
)
from ascend_cpt.cluster.node.packages import REQUIREMENTS_DIR, find_problems, read_pins

PYTHON_VERSIONS = ((3, 10), (3, 11))
CANN_VERSIONS = ("8.2", "8.3", "8.5", "9.0")
SET_ENV = "source /usr/local/Ascend/ascend-toolkit/set_env.sh"
MIN_OPEN_FILES = 4096
MIN_SHARED_MEMORY_GB = 1
MIN_LOG_DISK_GB = 1
MIN_MEMORY_PER_NPU_GB = 16
MIN_MEMORY_PER_CPU_WORKER_GB = 2
# Loading and compiling a large model may take minutes longer on one node than on others.
MIN_CONNECT_TIMEOUT_S, MAX_CONNECT_TIMEOUT_S = 300, 7200
MIN_EXEC_TIMEOUT_S = 600
HCCL_BASE_PORT, NUM_HCCL_PORTS = 60000, 32
# In published npu-smi outputs, the driver holds up to 3.5 GB of HBM on an idle chip.
IDLE_HBM_MB = 6000
GB = 10**9


class Level(str, Enum):
    """The severity of a check's result."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"
    SKIPPED = "not checked"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check, with a `fix` for a warning or an error."""

    level: Level
    check: str
    text: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.level.value:11} {self.check}: {self.text}" + (f"; {self.fix}" if self.fix else "")


@dataclass(frozen=True, kw_only=True)
class Node:
    """The node to check. Tests replace `root` and `query_npus`."""

    environ: Mapping[str, str]
    num_local_workers: int = 8
    num_nodes: int = 1
    output_dir: Path = Path(".")
    disk_gb: float = MIN_LOG_DISK_GB
    root: Path = Path("/")
    limit_s: float = 10.0
    query_npus: Callable[[float], Status] = field(default=query_npu_smi)

    @property
    def num_devices(self) -> int:
        return sum(path.name[7:].isdecimal() for path in (self.root / "dev").glob("davinci*"))


def examine(node: Node) -> list[Finding]:
    """Return the findings of all checks, in the order of CHECKS."""
    return [finding for check in CHECKS for finding in check(node)]


def check_python(node: Node) -> Iterator[Finding]:
    """Check the Python version and the pinned packages."""
    version = sys.version_info[:2]
    text = f"{version[0]}.{version[1]} ({sys.executable})"
    if version in PYTHON_VERSIONS:
        yield Finding(level=Level.OK, check="python", text=text)
    else:
        fix = "MindSpore 2.9.0 has wheels for 3.10 and 3.11: install one and set ASCEND_CPT_PYTHON to it"
        yield Finding(level=Level.ERROR, check="python", text=text, fix=fix)
    problems = find_problems(read_pins(REQUIREMENTS_DIR / "base.txt"))
    for problem in problems:
        level = Level.ERROR if problem.found is None else Level.WARNING
        fix = f'"{sys.executable}" -m pip install {problem.name}=={problem.expected}'
        yield Finding(level=level, check="packages", text=str(problem), fix=fix)
    if not problems:
        yield Finding(level=Level.OK, check="packages", text="as pinned in requirements/base.txt")


def check_cann(node: Node) -> Iterator[Finding]:
    """Check CANN's environment and version, and the driver."""
    home_name = node.environ.get("ASCEND_HOME_PATH")
    if not node.num_devices:
        text = "no NPUs on this machine (no /dev/davinci<number>), so CANN and the driver are not needed"
        yield Finding(level=Level.SKIPPED, check="cann", text=text)
        return
    if not home_name:
        yield Finding(level=Level.ERROR, check="cann", text="ASCEND_HOME_PATH is not set", fix=SET_ENV)
        return
    toolkit = find_cann_version(Path(home_name))
    version = (toolkit or {}).get("version")
    if not toolkit or not version:
        text = f"no version file in ASCEND_HOME_PATH={home_name}"
        yield Finding(
            level=Level.WARNING, check="cann", text=text, fix=f"check that CANN is installed there, or run: {SET_ENV}"
        )
        return
    if shorten_version(version) in CANN_VERSIONS:
        yield Finding(level=Level.OK, check="cann", text=version)
    else:
        fix = f"MindSpore 2.9.0 requires one of {', '.join(CANN_VERSIONS)}"
        yield Finding(level=Level.ERROR, check="cann", text=version, fix=fix)
    if missing := [name for name in ("ASCEND_OPP_PATH", "LD_LIBRARY_PATH") if not node.environ.get(name)]:
        yield Finding(level=Level.ERROR, check="cann", text=f"{' and '.join(missing)} not set", fix=SET_ENV)
    yield from _check_driver(node, toolkit)


def _check_driver(node: Node, toolkit: Mapping[str, str]) -> Iterator[Finding]:
    path = node.root / DRIVER_VERSION_FILE.relative_to("/")
    if not path.is_file():
        text = f"{DRIVER_VERSION_FILE} is missing"
        fix = "in a container, mount /usr/local/Ascend/driver from the host; otherwise install the driver"
        yield Finding(level=Level.ERROR, check="driver", text=text, fix=fix)
        return
    driver = parse_version_file(path.read_text(encoding="utf-8", errors="replace"))
    version = driver.get("package_version") or driver.get("version", "?")
    compatible = is_compatible(dict(toolkit), driver)
    if compatible:
        text = f"{version}, listed as compatible by CANN {toolkit['version']}"
        yield Finding(level=Level.OK, check="driver", text=text)
    elif compatible is None:
        text = f"{version}; compatibility with CANN {toolkit['version']} is not stated in their version files"
        yield Finding(level=Level.SKIPPED, check="driver", text=text)
    else:
        text = f"{version} ({driver['innerversion']}) is not listed as compatible by CANN {toolkit['version']}"
        fix = "install a driver of the same release as CANN, or newer"
        yield Finding(level=Level.WARNING, check="driver", text=text, fix=fix)


def check_npus(node: Node) -> Iterator[Finding]:
    """Check that there are enough healthy and free NPUs for the workers."""
    if not node.num_devices:
        text = "no NPUs on this machine, so their health and use are not checked"
        yield Finding(level=Level.SKIPPED, check="npus", text=text)
        return
    visible = node.environ.get("ASCEND_RT_VISIBLE_DEVICES")
    count = len(visible.split(",")) if visible else node.num_devices
    if count < node.num_local_workers:
        where = "ASCEND_RT_VISIBLE_DEVICES" if visible else "/dev/davinci*"
        text = f"{count} according to {where}, but {node.num_local_workers} workers"
        yield Finding(level=Level.ERROR, check="npus", text=text, fix="start fewer workers, or give the node more NPUs")
    try:
        status = node.query_npus(node.limit_s)
    except (OSError, ValueError) as error:
        fix = "run npu-smi info manually; in a container, mount npu-smi and /usr/local/Ascend/driver from the host"
        yield Finding(level=Level.WARNING, check="npus", text=str(error), fix=fix)
        return
    is_ok = True
    for chip in status.chips:
        name = f"NPU {chip.card} chip {chip.number} ({chip.name})"
        holders = [p for p in status.processes if (p.card, p.number) == (chip.card, chip.number)]
        if chip.health != "OK":
            is_ok = False
            fix = f"see npu-smi info -t health -i {chip.card}; use other NPUs or reset it"
            yield Finding(level=Level.ERROR, check="npus", text=f"{name}: health {chip.health}", fix=fix)
        for holder in holders:
            is_ok = False
            text = f"{name} is used by process {holder.pid} ({holder.name}, {holder.memory_mb} MB)"
            fix = f"check its owner (ps -fp {holder.pid}); if it is a leftover of an earlier job: kill {holder.pid}"
            yield Finding(level=Level.WARNING, check="npus", text=text, fix=fix)
        if not holders and chip.used_hbm_mb > IDLE_HBM_MB:
            is_ok = False
            text = f"{name}: {chip.used_hbm_mb} MB of {chip.total_hbm_mb} MB in use, but by no visible process"
            fix = "another container may be using it: run npu-smi info on the host"
            yield Finding(level=Level.WARNING, check="npus", text=text, fix=fix)
    if is_ok:
        text = f"{len(status.chips)} chips, healthy and free (npu-smi {status.version})"
        yield Finding(level=Level.OK, check="npus", text=text)


def check_hccl(node: Node) -> Iterator[Finding]:
    """Check the timeouts and ports of HCCL, the communication library."""
    if not node.num_devices:
        text = "no NPUs on this machine, so HCCL is not used"
        yield Finding(level=Level.SKIPPED, check="hccl", text=text)
        return
    found = [*_check_timeouts(node.environ)]
    if node.num_nodes > 1:
        found += _check_hccl_ports(node)
    yield from found


def _check_timeouts(environ: Mapping[str, str]) -> Iterator[Finding]:
    limits = {
        CONNECT_TIMEOUT: (MIN_CONNECT_TIMEOUT_S, MAX_CONNECT_TIMEOUT_S),
        "HCCL_EXEC_TIMEOUT": (MIN_EXEC_TIMEOUT_S, None),
    }
    for name, (least_s, most_s) in limits.items():
        text = environ.get(name)
        if not text:
            if name == CONNECT_TIMEOUT:
                text = f"{name} is {DEFAULT_CONNECT_TIMEOUT_S} s, set by the launcher"
                yield Finding(level=Level.OK, check="hccl", text=text)
            continue
        fix = f"export {name}=1800 on every node"
        if not text.isdecimal() or (most_s and int(text) > most_s):
            wrong = f"{name}={text} is not a number of seconds" + (f" up to {most_s}" if most_s else "")
            yield Finding(level=Level.ERROR, check="hccl", text=wrong, fix=fix)
        # HCCL_EXEC_TIMEOUT=0 means no limit.
        elif int(text) < least_s and not (int(text) == 0 and name == "HCCL_EXEC_TIMEOUT"):
            short = f"{name}={text} s is short: the other ranks fail when one compiles, validates or saves for longer"
            yield Finding(level=Level.WARNING, check="hccl", text=short, fix=fix)
        else:
            yield Finding(level=Level.OK, check="hccl", text=f"{name} is {text} s")


def _check_hccl_ports(node: Node) -> Iterator[Finding]:
    text = node.environ.get("HCCL_IF_BASE_PORT")
    first = int(text) if text and text.isdecimal() else HCCL_BASE_PORT
    last = first + NUM_HCCL_PORTS - 1
    settings = node.root / "proc/sys/net/ipv4"
    try:
        low, high = map(int, (settings / "ip_local_port_range").read_text(encoding="ascii").split())
        reserved = (settings / "ip_local_reserved_ports").read_text(encoding="ascii").strip()
    except OSError:
        return
    spans = [part.split("-") for part in reserved.split(",") if part]
    is_reserved = any(int(span[0]) <= first and last <= int(span[-1]) for span in spans)
    if low <= last and first <= high and not is_reserved:
        wrong = f"the kernel may assign HCCL's ports {first}-{last} to other connections"
        fix = f"sysctl -w net.ipv4.ip_local_reserved_ports={first}-{last} on every node"
        yield Finding(level=Level.WARNING, check="hccl", text=wrong, fix=fix)


def check_hostname(node: Node) -> Iterator[Finding]:
    """Check that the host name resolves to an address that other nodes can reach."""
    name = socket.gethostname()
    try:
        address = ipaddress.ip_address(socket.gethostbyname(name))
    except OSError as error:
        fix = f'add "<its address> {name}" to /etc/hosts'
        yield Finding(level=Level.WARNING, check="hostname", text=f"{name} cannot be resolved ({error})", fix=fix)
        return
    if address.is_loopback and node.num_nodes > 1 and node.num_devices and not node.environ.get("HCCL_IF_IP"):
        text = f"{name} resolves to the loopback address {address}"
        fix = "map it to its network address in /etc/hosts, or export HCCL_IF_IP=<this node's address>"
        yield Finding(level=Level.WARNING, check="hostname", text=text, fix=fix)
    else:
        yield Finding(level=Level.OK, check="hostname", text=f"{name} is {address}")


def check_resources(node: Node) -> Iterator[Finding]:
    """Check disk space, memory, shared memory and the open-file limit."""
    folder = next(path for path in [node.output_dir.absolute(), *node.output_dir.absolute().parents] if path.exists())
    free_gb = shutil.disk_usage(folder).free / GB
    text = f"{free_gb:.0f} GB free at {folder}"
    if free_gb < node.disk_gb:
        fix = "free some space, choose another output_dir, or save less often (run_cpt.py --dry-run prints the size)"
        yield Finding(level=Level.ERROR, check="disk", text=f"{text}, but {node.disk_gb:g} GB needed", fix=fix)
    else:
        yield Finding(level=Level.OK, check="disk", text=text)
    each_gb = MIN_MEMORY_PER_NPU_GB if node.num_devices else MIN_MEMORY_PER_CPU_WORKER_GB
    free_gb, needed_gb = psutil.virtual_memory().available / GB, each_gb * node.num_local_workers
    text = f"{free_gb:.0f} GB available for {node.num_local_workers} workers"
    if free_gb < needed_gb:
        fix = f"{needed_gb} GB are recommended: stop other programs or start fewer workers"
        yield Finding(level=Level.WARNING, check="memory", text=text, fix=fix)
    else:
        yield Finding(level=Level.OK, check="memory", text=text)
    shared = node.root / "dev/shm"
    if shared.is_dir() and (free_gb := shutil.disk_usage(shared).free / GB) < MIN_SHARED_MEMORY_GB:
        fix = "start the container with --shm-size=16g"
        yield Finding(level=Level.WARNING, check="shared memory", text=f"{free_gb:.1f} GB at /dev/shm", fix=fix)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < MIN_OPEN_FILES:
        fix = f"ulimit -n {MIN_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, 65536)}"
        yield Finding(level=Level.WARNING, check="open files", text=f"at most {soft}", fix=fix)
    else:
        yield Finding(level=Level.OK, check="open files", text=f"at most {soft}")


CHECKS = (check_python, check_cann, check_npus, check_hccl, check_hostname, check_resources)
