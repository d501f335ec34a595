"""Stub libraries in place of CANN, so that MindSpore's Ascend plugin loads on an x86-64 machine without an NPU.

In simulation MindSpore calls none of CANN's functions in earnest: they must be there, return 0 or hand back an empty
object. Which ones follows from the installed MindSpore: the symbols that its Ascend libraries lack, and the names that
they look up while running. They are assembled into one library, which the libraries of the known names pull in.
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
_NOT_OURS = ("_ITM_", "__gmon", "__cxa_finalize", "omp_", "Py", "_Py")
# The plugin finds its home by the word `latest` in the path of the library that holds the acl functions.
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
    """Return the home of a real CANN that the environment names, or None."""
    for name in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME"):
        home = os.environ.get(name)
        if home and (Path(home) / "lib64" / "libascendcl.so").exists():
            return Path(home)
    return None


def prepare_stubs(cache_dir: Path | None = None) -> Path:
    """Return the folder of the stub libraries for the installed MindSpore, made now or found in the cache.

    Raises:
        ClusterError: when this machine cannot make or run them.
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
                f"{cache}: cannot be written ({error.strerror}), but the stand-ins for CANN go there; set "
                "XDG_CACHE_HOME to another folder"
            ) from None
        with folder as temporary:
            built = Path(temporary) / "home"
            _build(mindspore, built / _HOME)
            try:
                os.replace(built, home)
            except OSError:
                # Another process was faster: its folder is the same.
                if not (home / _HOME).is_dir():
                    raise
    return home / _HOME


def check_machine() -> None:
    """Make sure that stubs can run here.

    Raises:
        ClusterError: when this is another kind of machine.
    """
    machine = platform.machine()
    if machine not in ("x86_64", "AMD64"):
        raise ClusterError(
            f"this machine is {machine}: the stand-ins for CANN are made for x86-64 only; run this on such a machine, "
            "or where CANN is installed (source its set_env.sh first)"
        )


def check_tools() -> None:
    """Make sure that stubs can be made here.

    Raises:
        ClusterError: naming the programs that are missing.
    """
    missing = [tool for tool in ("gcc", "nm", "strings") if shutil.which(tool) is None]
    if missing:
        raise ClusterError(
            f"{', '.join(missing)} not found: compiling without CANN needs gcc and binutils; install them"
        )


def list_library_paths(lib64: Path) -> list[Path]:
    """Return the folders in which the processes must look for libraries, the stubs' first."""
    mindspore = find_mindspore()
    return [lib64, mindspore / "lib", mindspore / "lib" / "plugin", mindspore / "lib" / "plugin" / "ascend"]


def list_symbols(mindspore: Path) -> list[str]:
    """Return the symbols that the Ascend plugin of MindSpore wants and nothing here defines."""
    plugin = mindspore / "lib" / "plugin"
    ascend = [path for path in sorted((plugin / "ascend").rglob("*.so*")) if path.is_file()]
    fronts = [plugin / "libmindspore_ascend.so.2", plugin / "libmindspore_ops_ascend.so"]
    if not all(path.is_file() for path in fronts):
        raise ClusterError(f"{plugin}: this MindSpore has no Ascend plugin; install the wheel of the package registry")
    defined = [*(mindspore / "lib").glob("*.so*"), *plugin.glob("libmindspore*.so*"), *ascend, *mindspore.glob("*.so")]
    system = [_find_system_library(name) for name in _SYSTEM]
    wanted = _read_symbols([*fronts, *ascend], "--undefined-only") - _read_symbols(
        [*defined, *system], "--defined-only"
    )
    for path in [*fronts, plugin / "ascend" / "libmindspore_ascend_res_manager.so"]:
        wanted |= set(_LOOKED_UP.findall(_run("strings", "-n", "4", str(path))))
    return sorted(name for name in wanted if not name.startswith(_NOT_OURS))


def _find_system_library(name: str) -> Path:
    """Return the file of a library of this system; its symbols must never be replaced by stubs."""
    path = Path(_run("gcc", f"-print-file-name={name}").strip())
    if not path.is_absolute():
        raise ClusterError(f"{name} not found: gcc does not know this system's libraries; install its C++ compiler")
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
    """Of what the stubs depend on: MindSpore's version and this code."""
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
    # nm fails on a file without dynamic symbols, which then has none.
    if result.returncode and command[0] == "gcc":
        raise ClusterError(f"{' '.join(command[:2])} failed: {' '.join(result.stderr.split())[-400:]}")
    return result.stdout
