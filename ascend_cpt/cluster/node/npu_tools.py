"""Parsers for npu-smi output and for the version files of the NPU driver and CANN."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

# How long HCCL waits for a group's other ranks. If it is not set, MindSpore sets it to 600 s on import, but the compile
# times of two pipeline stages may differ by more than that. CANN accepts 120 to 7200.
CONNECT_TIMEOUT = "HCCL_CONNECT_TIMEOUT"
DEFAULT_CONNECT_TIMEOUT_S = 1800
DRIVER_VERSION_FILE = Path("/usr/local/Ascend/driver/version.info")


@dataclass(frozen=True, kw_only=True)
class Chip:
    """A chip in `npu-smi info`: card and chip number, health, used and total HBM in MB."""

    card: int
    number: int
    name: str
    health: str
    used_hbm_mb: int
    total_hbm_mb: int


@dataclass(frozen=True, kw_only=True)
class NpuProcess:
    """A process that uses a chip."""

    card: int
    number: int
    pid: int
    name: str
    memory_mb: int


@dataclass(frozen=True, kw_only=True)
class Status:
    """Parsed output of `npu-smi info`."""

    version: str
    chips: tuple[Chip, ...]
    processes: tuple[NpuProcess, ...]


def parse_npu_smi(text: str) -> Status:
    """Parse the table of `npu-smi info`.

    Each chip has two rows: | card name | health | power ... | and | number [physical id] | bus | ... used / total |.
    The processes follow in rows | card number | pid | name | memory | [pid in container] |. Raises ValueError if there
    is no chip.
    """
    version = re.search(r"npu-smi\s+(\S+)", text)
    chips: list[Chip] = []
    processes: list[NpuProcess] = []
    head: tuple[int, str, str] | None = None
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) >= 4 and cells[1].isdecimal() and re.fullmatch(r"\d+\s+\d+", cells[0]):
            card, number = map(int, cells[0].split())
            memory = re.match(r"\d+", cells[3])
            processes.append(
                NpuProcess(
                    card=card,
                    number=number,
                    pid=int(cells[1]),
                    name=cells[2],
                    memory_mb=int(memory.group()) if memory else 0,
                )
            )
        elif len(cells) == 3 and head and re.fullmatch(r"[0-9A-Fa-fx]{4}:\S+", cells[1]):
            used, total = re.findall(r"(\d+)\s*/\s*(\d+)", cells[2])[-1]
            card, name, health = head
            chips.append(
                Chip(
                    card=card,
                    number=int(cells[0].split()[0]),
                    name=name,
                    health=health,
                    used_hbm_mb=int(used),
                    total_hbm_mb=int(total),
                )
            )
            head = None
        elif len(cells) == 3 and (match := re.fullmatch(r"(\d+)\s+(\S+)", cells[0])) and cells[1].isalpha():
            head = (int(match[1]), match[2], cells[1])
    if not chips:
        raise ValueError("no chip in the output of npu-smi info")
    return Status(version=version[1] if version else "?", chips=tuple(chips), processes=tuple(processes))


def query_npu_smi(limit_s: float) -> Status:
    """Run `npu-smi info` and return its parsed output.

    Raises OSError if the program is missing or fails, ValueError if its output cannot be parsed, and TimeoutError.
    """
    try:
        result = subprocess.run(
            ["npu-smi", "info"], text=True, capture_output=True, timeout=limit_s, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"npu-smi info did not answer within {limit_s:g} s") from None
    if result.returncode:
        output = (result.stderr.strip() or result.stdout.strip()).splitlines()[:1]
        raise OSError(f"npu-smi info failed with exit code {result.returncode}: {output[0] if output else 'no output'}")
    return parse_npu_smi(result.stdout)


def parse_version_file(text: str) -> dict[str, str]:
    """Return the lower-case keys and values of a `Key=value` file such as version.info or *_install.info."""
    pairs = (line.strip().partition("=") for line in text.splitlines() if "=" in line)
    return {key.strip().lower(): value.strip() for key, _, value in pairs}


def find_cann_version(home: Path) -> dict[str, str] | None:
    """Return the CANN toolkit's version file in ASCEND_HOME_PATH, or None if there is none."""
    candidates = [*sorted(home.glob("*/ascend_toolkit_install.info")), home / "ascend_toolkit_install.info"]
    # The file that MindSpore reads.
    candidates.append(home / "compiler" / "version.info")
    path = next((path for path in candidates if path.is_file()), None)
    return parse_version_file(path.read_text(encoding="utf-8", errors="replace")) if path else None


def shorten_version(version: str) -> str:
    """Return the major and minor version, as in support tables: 8.3.RC2 gives 8.3."""
    return ".".join(version.split(".")[:2])


def is_compatible(toolkit: dict[str, str], driver: dict[str, str]) -> bool | None:
    """Return whether the toolkit lists the driver's version as compatible, or None if either is not stated."""
    compatible = re.findall(r"\[([^\[\]]+)\]", toolkit.get("compatible_version", ""))
    inner = driver.get("innerversion", "")
    if not compatible or not inner:
        return None
    return any(inner.startswith(version) for version in compatible)


def has_npu(device_folder: Path = Path("/dev")) -> bool:
    """Return whether this machine has an Ascend NPU (/dev/davinci0, ...)."""
    return any(device_folder.glob("davinci[0-9]*"))
