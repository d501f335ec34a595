"""Builds stub libraries for CANN, so that MindSpore's Ascend plugin loads on an x86-64 machine without an NPU.

In simulation MindSpore needs CANN's functions only to exist and to return 0 or an empty object. The list of symbols
comes from the installed MindSpore: the undefined symbols of its Ascend libraries, and the names that they look up at
run time. All are assembled into one library, which empty libraries with CANN's names link against.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from ascend_cpt.errors import ClusterError
from ascend_cpt.simulate.cann_stub_code import render_assembly

LIBRARIES = (
    "ge_runner",
    "graph",
    "ascendcl",
    "msprofiler",
    "hccl",
    "runtime",
    "platform",
    "c_sec",
    "nnopbase",
    "ascend_hal",
    "acl_op_compiler",
    "acl_tdt_channel",
    "acl_tdt_queue",
    "ascend_ml",
    "opapi",
)
_SYSTEM = ("libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1", "libpthread.so.0", "libdl.so.2", "librt.so.1",
           "libgomp.so.1")  # fmt: skip
_LOOKED_UP = re.compile(r"^(?:acl|rt|Hccl|hccl|Ascend|hal|Msprof|ge)[A-Za-z0-9_]*$", re.MULTILINE)
_EXCLUDED_PREFIXES = ("_ITM_", "__gmon", "__cxa_finalize", "omp_", "Py", "_Py")
# The plugin finds CANN's home by the word `latest` in the path of the library with the acl functions.
_HOME = Path("latest") / "lib64"


def find_mindspore() -> Path:
    """Return the folder of the installed MindSpore.

    Raises:
        ClusterError: when it is not installed.
    """
    spec = find_spec("mindspore")
    if spec is None or spec.origin is None:
        raise ClusterError("mindspore is not installed here; install requirements/base.txt")
    return Path(spec.origin).parent


def find_cann() -> Path | None:
    """Return the home of the CANN installation in the environment, or None."""
    for name in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME"):
        home = os.environ.get(name)
        if home and (Path(home) / "lib64" / "libascendcl.so").exists():
            return Path(home)
    return None


def prepare_stubs(cache_dir: Path | None = None) -> Path:
    """Return the folder of the stub libraries for the installed MindSpore; build them if they are not cached.

    Raises:
        ClusterError: when they cannot be built or used on this machine.
    """
    check_machine()
    mindspore = find_mindspore()
    cache = cache_dir or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ascend_cpt"
    home = cache / f"cann-stubs-{_fingerprint()}"
    if not (home / _HOME).is_dir():
        check_tools()
        try:
            cache.mkdir(parents=True, exist_ok=True)
            folder = tempfile.TemporaryDirectory(dir=cache, prefix=".stubs-")
        except OSError as error:
            raise ClusterError(
                f"{cache}: cannot be written ({error.strerror}); the stub libraries for CANN are cached there; set "
                "XDG_CACHE_HOME to another folder"
            ) from None
        with folder as temporary:
            built = Path(temporary) / "home"
            _build(mindspore, built / _HOME)
            try:
                os.replace(built, home)
            except OSError:
                # Another process was faster; its folder has the same content.
                if not (home / _HOME).is_dir():
                    raise
    return home / _HOME


def check_machine() -> None:
    """Check that this machine can use the stubs.

    Raises:
        ClusterError: when it is not an x86-64 machine.
    """
    machine = platform.machine()
    if machine not in ("x86_64", "AMD64"):
        raise ClusterError(
            f"this machine is {machine}, but the stub libraries for CANN need x86-64; run this on an x86-64 machine, "
            "or where CANN is installed (source its set_env.sh first)"
        )


def check_tools() -> None:
    """Check that the programs to build the stubs are installed.

    Raises:
        ClusterError: naming the missing programs.
    """
    missing = [tool for tool in ("gcc", "nm", "strings") if shutil.which(tool) is None]
    if missing:
        raise ClusterError(
            f"{', '.join(missing)} not found: compiling without CANN needs gcc and binutils; install them"
        )


def list_library_paths(lib64: Path) -> list[Path]:
    """Return the library search path of the processes, the stubs first."""
    mindspore = find_mindspore()
    return [lib64, mindspore / "lib", mindspore / "lib" / "plugin", mindspore / "lib" / "plugin" / "ascend"]


def list_symbols(mindspore: Path) -> list[str]:
    """Return the symbols that MindSpore's Ascend plugin needs and no installed library defines."""
    plugin = mindspore / "lib" / "plugin"
    ascend = [path for path in sorted((plugin / "ascend").rglob("*.so*")) if path.is_file()]
    fronts = [plugin / "libmindspore_ascend.so.2", plugin / "libmindspore_ops_ascend.so"]
    if not all(path.is_file() for path in fronts):
        raise ClusterError(f"{plugin}: this MindSpore has no Ascend plugin; install the wheel from PyPI")
    defined = [*(mindspore / "lib").glob("*.so*"), *plugin.glob("libmindspore*.so*"), *ascend, *mindspore.glob("*.so")]
    system = [_find_system_library(name) for name in _SYSTEM]
    wanted = _read_symbols([*fronts, *ascend], "--undefined-only") - _read_symbols(
        [*defined, *system], "--defined-only"
    )
    for path in [*fronts, plugin / "ascend" / "libmindspore_ascend_res_manager.so"]:
        wanted |= set(_LOOKED_UP.findall(_run("strings", "-n", "4", str(path))))
    return sorted(name for name in wanted if not name.startswith(_EXCLUDED_PREFIXES))


def _find_system_library(name: str) -> Path:
    """Return the path of a system library; its symbols must not be replaced by stubs."""
    path = Path(_run("gcc", f"-print-file-name={name}").strip())
    if not path.is_absolute():
        raise ClusterError(f"{name} not found: gcc cannot find the system's libraries; install g++")
    return path


def _build(mindspore: Path, lib64: Path) -> None:
    (lib64 / "driver").mkdir(parents=True)
    assembly = lib64 / "stub.s"
    assembly.write_text(render_assembly(list_symbols(mindspore)), encoding="utf-8")
    _run("gcc", "-shared", "-o", str(lib64 / "libacstub.so"), str(assembly))
    empty = lib64 / "empty.c"
    empty.write_text("", encoding="utf-8")
    for name in LIBRARIES:
        file = f"lib{name}.so"
        _run("gcc", "-shared", "-fPIC", "-o", str(lib64 / file), str(empty), f"-Wl,-soname,{file}",
             "-Wl,--no-as-needed", f"-L{lib64}", "-lacstub", "-Wl,-rpath,$ORIGIN")  # fmt: skip


def _fingerprint() -> str:
    """Return MindSpore's version and a hash of this code, on which the stubs depend."""
    code = [Path(__file__), Path(__file__).with_name("cann_stub_code.py")]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in code)).hexdigest()[:12]
    return f"{version('mindspore')}-{digest}"


def _read_symbols(paths: Iterable[Path], flag: str) -> set[str]:
    found: set[str] = set()
    for path in paths:
        lines = _run("nm", "-D", flag, str(path)).splitlines()
        found.update(line.split()[-1].split("@")[0] for line in lines if line.strip())
    return found


def _run(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    # nm fails on a file without dynamic symbols; that is not an error here.
    if result.returncode and command[0] == "gcc":
        raise ClusterError(f"{' '.join(command[:2])} failed: {' '.join(result.stderr.split())[-400:]}")
    return result.stdout
