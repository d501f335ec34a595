"""Lists the CANN functions called by the installed MindSpore's Ascend plugin.

There are two kinds: undefined symbols in the plugin's libraries, and names looked up at runtime with `dlsym`, which
appear in these libraries as strings.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from ascend_cpt.errors import ClusterError

_UNDEFINED = re.compile(
    r"(?:acl|hal|hi_|mm|rt|Alog|CheckLog|Dlog|Hccl|Msprof|Nnopbase)[A-Za-z]\w*|AclSet\w+"
    # C++ of the graph engine and its neighbours; `_ZTH` initializes thread-local variables of the plugin itself.
    r"|_Z(?!TH)\w+"
)
_LOOKED_UP = re.compile(
    r"^(?:acl(?:nn|rt|op|mdl|tdt|prof|dvpp)[A-Z]\w+|acl(?:Create|Destroy|Get|Set|Update|Gen|Init|Finalize|DataType)\w*"
    r"|(?:Init|UnInit|Release)HugeMem\w*|Hccl[A-Z]\w+"
    r"|rt[A-Z]\w+|halHost\w+)$",
    re.MULTILINE,
)
_SYSTEM_LIBRARIES = (
    "libc.so.6",
    "libm.so.6",
    "libstdc++.so.6",
    "libgcc_s.so.1",
    "libpthread.so.0",
    "libdl.so.2",
    "librt.so.1",
    "libgomp.so.1",
)


def find_mindspore() -> Path:
    """Return the folder of the installed MindSpore, without importing it.

    Raises:
        ClusterError: when MindSpore is not installed.
    """
    spec = find_spec("mindspore")
    if spec is None or spec.origin is None:
        raise ClusterError("mindspore is not installed here; install requirements/base.txt")
    return Path(spec.origin).parent


def read_mindspore_version() -> str:
    """Return the version of the installed MindSpore.

    Raises:
        ClusterError: when MindSpore is not installed.
    """
    try:
        return version("mindspore")
    except PackageNotFoundError:
        raise ClusterError("mindspore is not installed here; install requirements/base.txt") from None


def list_wanted_symbols(mindspore: Path) -> list[str]:
    """Return the symbols that MindSpore's Ascend plugin requires from CANN, sorted.

    Raises:
        ClusterError: when this MindSpore has no Ascend plugin.
    """
    plugin = mindspore / "lib" / "plugin"
    ascend = [path for path in sorted((plugin / "ascend").rglob("*.so*")) if path.is_file()]
    fronts = [plugin / "libmindspore_ascend.so.2", plugin / "libmindspore_ops_ascend.so"]
    if not all(path.is_file() for path in fronts):
        raise ClusterError(f"{plugin}: this MindSpore has no Ascend plugin; reinstall it from requirements/base.txt")
    defining = [*(mindspore / "lib").glob("*.so*"), *plugin.glob("libmindspore*.so*"), *ascend, *mindspore.glob("*.so")]
    defined = _read_symbols([*defining, *map(_find_system_library, _SYSTEM_LIBRARIES)], "--defined-only")
    undefined = _read_symbols([*fronts, *ascend], "--undefined-only") - defined
    wanted = {name for name in undefined if _UNDEFINED.fullmatch(name)}
    for path in [*fronts, plugin / "ascend" / "libmindspore_ascend_res_manager.so"]:
        wanted |= set(_LOOKED_UP.findall(_run("strings", "-n", "4", str(path)))) - defined
    return sorted(wanted)


def _find_system_library(name: str) -> Path:
    """Return the file of a system library, whose symbols must not be replaced."""
    path = Path(_run("g++", f"-print-file-name={name}").strip())
    if not path.is_absolute():
        raise ClusterError(f"{name} not found: g++ cannot locate this library; install the system C++ compiler")
    return path


def _read_symbols(paths: Iterable[Path], flag: str) -> set[str]:
    found: set[str] = set()
    for path in paths:
        # nm fails for a file without dynamic symbols, which means there are none.
        found.update(line.split()[-1].split("@")[0] for line in _run("nm", "-D", flag, str(path)).splitlines() if line)
    return found


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout
