"""Runs a process on the software NPU when `ASCEND_CPT_SOFTNPU=1` is set.

The libraries must be on the loader path before the process starts, so `enter` builds them and re-executes the command
with the required environment variables. msrun itself runs in the user's environment.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from ascend_cpt.errors import ClusterError
from ascend_cpt.softnpu.build import PYTHON_FOLDER, list_library_paths, prepare_libraries
from ascend_cpt.softnpu.symbols import read_mindspore_version

SWITCH = "ASCEND_CPT_SOFTNPU"
LIBRARIES = "ASCEND_CPT_SOFTNPU_LIBRARIES"
"""Library folder; set only in processes that run on the software NPU."""
MINDSPORE_VERSION = "2.9.0"
"""The MindSpore version whose operator signatures are emulated."""


def is_requested(environ: Mapping[str, str]) -> bool:
    """Return whether the environment enables the software NPU.

    Raises:
        ClusterError: for a value other than 0 or 1.
    """
    value = environ.get(SWITCH, "")
    if value not in ("", "0", "1"):
        raise ClusterError(f"{SWITCH}={value}: set it to 1 to run on emulated NPUs, or to 0 to disable them")
    return value == "1"


def find_cann(environ: Mapping[str, str]) -> Path | None:
    """Return the home of a real CANN installation set in the environment, or None."""
    for name in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME"):
        home = environ.get(name)
        if home and (Path(home) / "lib64" / "libascendcl.so").exists():
            return Path(home)
    return None


def prepare(environ: Mapping[str, str]) -> Path | None:
    """Build the libraries if necessary and return their folder, or None if the environment does not enable them.

    Raises:
        ClusterError: when this machine cannot emulate NPUs.
    """
    if not is_requested(environ):
        return None
    check_mindspore(read_mindspore_version())
    return prepare_libraries()


def check_mindspore(version: str) -> None:
    """Make sure that the operators' signatures match the installed MindSpore.

    Raises:
        ClusterError: naming both versions.
    """
    if version != MINDSPORE_VERSION:
        raise ClusterError(
            f"mindspore {version} is installed, but the software NPU supports only {MINDSPORE_VERSION}; install that "
            f"version, or unset {SWITCH}"
        )


def make_environment(environ: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Return the variables that a process on the software NPU needs in addition to `environ`.

    Args:
        environ: The process's environment. Values set by the user are kept.
        folder: Folder of the libraries.
    """
    home = folder.parent
    return {
        LIBRARIES: str(folder),
        "LD_LIBRARY_PATH": _join(map(str, list_library_paths(folder)), environ.get("LD_LIBRARY_PATH")),
        "PYTHONPATH": _join([str(home / PYTHON_FOLDER)], environ.get("PYTHONPATH")),
        "ASCEND_OPP_PATH": str(home / "opp"),
        # Show only errors, because MindSpore warns about the missing drivers.
        "GLOG_v": environ.get("GLOG_v", "3"),
    }


def enter() -> None:
    """Restart this command on the software NPU if ASCEND_CPT_SOFTNPU=1. Otherwise, return.

    Call this before anything imports MindSpore.

    Raises:
        ClusterError: when this machine cannot emulate NPUs.
    """
    # msrun's scheduler computes nothing.
    if LIBRARIES in os.environ or os.environ.get("MS_ROLE") == "MS_SCHED":
        return
    folder = prepare(os.environ)
    if folder is None:
        return
    os.environ.update(make_environment(os.environ, folder))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _join(paths: Iterable[str], rest: str | None) -> str:
    return os.pathsep.join([*paths, *filter(None, [rest])])
