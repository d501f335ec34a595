"""Builds the emulated CANN libraries with g++, once per combination of MindSpore, compiler, processor and sources."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from ascend_cpt.errors import ClusterError
from ascend_cpt.softnpu.assembly import list_operators, render_assembly
from ascend_cpt.softnpu.symbols import find_mindspore, list_wanted_symbols, read_mindspore_version

SOURCES = Path(__file__).with_name("src")
# The library names that MindSpore's plugin loads. They all link to the single library that contains the code.
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
# The plugin searches for `latest` in the path of the library with the acl functions to find its home.
LIBRARY_FOLDER = Path("latest") / "lib64"
# Where MindSpore looks for CANN's Python packages, next to the libraries' folder.
PYTHON_FOLDER = Path("opp") / "built-in" / "op_impl" / "ai_core" / "tbe"
# MindSpore reads the HCCL version from this package. A `te` package is omitted, since MindSpore would query it too.
_PYTHON_MODULES = {"hccl/sys_version.py": "__sys_version__"}
_CANN_VERSION = "8.5.0"
# No fused or reordered arithmetic: results are the same on every processor.
# Without traps and errno, which are unused, loops with comparisons and square roots are vectorized.
# Without SLP vectorization: with AVX-512, g++ 12 takes `(double)(float)x` for `x` there, so float16 was rounded twice.
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno",
          "-fno-tree-slp-vectorize", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra")  # fmt: skip
_HANDLER = re.compile(r"L(?P<length>\d+)run_(?P<rest>\w+)")  # mangled, of a static function made by OP


def prepare_libraries(cache_dir: Path | None = None) -> Path:
    """Return the folder of the emulated libraries for the installed MindSpore, built now or found in the cache.

    Args:
        cache_dir: Where to keep the libraries; by default `ascend_cpt/softnpu` in XDG_CACHE_HOME or ~/.cache.

    Raises:
        ClusterError: when this machine cannot build or run the libraries.
    """
    check_machine()
    cache = cache_dir or _find_cache()
    home = _find_built(cache)
    if home is not None:
        return home / LIBRARY_FOLDER
    check_tools()
    home = cache / f"{_make_key()}-{_read_compiler()}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _hold_lock(cache / f"{home.name}.lock"):
            if not (home / LIBRARY_FOLDER).is_dir():
                _build_whole(home)
    except OSError as error:
        raise ClusterError(
            f"{cache}: cannot write the emulated CANN libraries ({error.strerror}); set XDG_CACHE_HOME to another "
            "folder"
        ) from None
    return home / LIBRARY_FOLDER


def check_machine() -> None:
    """Make sure that the libraries can run here.

    Raises:
        ClusterError: when the machine is not x86-64.
    """
    machine = platform.machine()
    if machine not in ("x86_64", "AMD64"):
        raise ClusterError(
            f"this machine is {machine}: the emulated CANN libraries support only x86-64; run this on an x86-64 "
            "machine, or where CANN is installed (source its set_env.sh first)"
        )


def check_tools() -> None:
    """Make sure that the libraries can be built here.

    Raises:
        ClusterError: when programs are missing. The message names them.
    """
    missing = [tool for tool in ("g++", "nm", "strings") if shutil.which(tool) is None]
    if missing:
        raise ClusterError(
            f"{', '.join(missing)} not found: install g++ and binutils to build the emulated CANN libraries"
        )


def list_library_paths(folder: Path) -> list[Path]:
    """Return the folders in which a process must look for libraries, with the emulated ones first."""
    plugin = find_mindspore() / "lib" / "plugin"
    return [folder, plugin.parent, plugin, plugin / "ascend"]


def _find_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ascend_cpt" / "softnpu"


def _find_built(cache: Path) -> Path | None:
    """Return the libraries built by this compiler or, without a compiler, by any."""
    compiler = _read_compiler() if shutil.which("g++") else "*"
    return next((home for home in sorted(cache.glob(f"{_make_key()}-{compiler}")) if home.is_dir()), None)


def _make_key() -> str:
    """Return MindSpore's version and a digest of the sources and the processor."""
    digest = hashlib.sha256()
    programs = [Path(__file__).with_name(f"{name}.py") for name in ("assembly", "build", "symbols")]
    for path in [*_list_sources("*.h"), *_list_sources("*.cc"), *programs]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update(_read_cpu_flags().encode())
    return f"{read_mindspore_version()}-{digest.hexdigest()[:16]}"


def _read_compiler() -> str:
    return "g++" + "-".join(_run("g++", "-dumpfullversion", "-dumpmachine").split())


def _read_cpu_flags() -> str:
    """Return what `-march=native` depends on, because a home folder may be shared by different machines."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line for line in lines if line.startswith("flags")), "")


@contextmanager
def _hold_lock(path: Path) -> Iterator[None]:
    """Hold a lock, so that only one process builds the same libraries at a time."""
    with path.open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build_whole(home: Path) -> None:
    """Build next to `home` and rename the result. The caller holds the lock."""
    work = home.with_name(f".build-{home.name}")
    shutil.rmtree(work, ignore_errors=True)  # left behind by a killed process
    work.mkdir()
    try:
        _build(work, work / "home" / LIBRARY_FOLDER)
        os.replace(work / "home", home)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _build(work: Path, folder: Path) -> None:
    """Compile the sources in `work` and link the libraries into `folder`."""
    (folder / "driver").mkdir(parents=True)
    sources = _list_sources("*.cc")
    objects = [work / f"{path.stem}.o" for path in sources]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        wanted = pool.submit(list_wanted_symbols, find_mindspore())
        # Compile the longest files first, so that no core idles at the end.
        jobs = sorted(zip(sources, objects, strict=True), key=lambda job: -job[0].stat().st_size)
        for done in [pool.submit(_run, "g++", *_FLAGS, "-c", str(source), "-o", str(out)) for source, out in jobs]:
            done.result()
    symbols = wanted.result()
    compiled = _run("nm", "--defined-only", *map(str, objects))
    operators = list_operators(symbols, _list_registered(compiled))
    defined = {parts[2] for parts in map(str.split, compiled.splitlines()) if len(parts) == 3 and parts[1].isupper()}
    assembly = work / "generated.s"
    assembly.write_text(render_assembly(operators, symbols, defined), encoding="utf-8")
    # C++ library templates instantiated in our objects must not replace MindSpore's own instances.
    exported = {*symbols, *(name for name in defined if not name.startswith("_Z"))}
    exported |= {name + phase for name in operators for phase in ("", "GetWorkspaceSize")}
    exports = work / "exports"
    exports.write_text(
        f"{{ global: {' '.join(f'{name};' for name in sorted(exported))} local: *; }};\n", encoding="utf-8"
    )
    library = folder / "libsoftnpu.so"
    _run(
        "g++",
        "-shared",
        "-o",
        str(library),
        *map(str, objects),
        str(assembly),
        "-lpthread",
        "-Wl,-soname,libsoftnpu.so",
        f"-Wl,--version-script={exports}",
    )
    for module, variable in _PYTHON_MODULES.items():
        path = folder.parent / PYTHON_FOLDER / module
        path.parent.mkdir(parents=True)
        path.with_name("__init__.py").write_text("", encoding="utf-8")
        path.write_text(f'{variable} = "{_CANN_VERSION}"\n', encoding="utf-8")
    empty = work / "empty.c"
    empty.write_text("", encoding="utf-8")
    for name in LIBRARIES:
        file = f"lib{name}.so"
        _run("g++", "-shared", "-fPIC", "-nostdlib", "-o", str(folder / file), str(empty), f"-Wl,-soname,{file}",
             "-Wl,--no-as-needed", f"-L{folder}", "-lsoftnpu", "-Wl,-rpath,$ORIGIN")  # fmt: skip


def _list_sources(pattern: str) -> list[Path]:
    """Return the sources: the runtime's, and the operators' in the folder below. No two have the same name."""
    return sorted(SOURCES.rglob(pattern))


def _list_registered(symbols: str) -> set[str]:
    """Return the aclnn operators that the objects implement: each has a static function `run_<name>(Call&)`."""
    found = set()
    for match in _HANDLER.finditer(symbols):
        name_length = int(match["length"]) - len("run_")
        if match["rest"][name_length:].endswith("RN7softnpu4CallE"):
            found.add(f"aclnn{match['rest'][:name_length]}")
    return found


def _run(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        errors = [line for line in result.stderr.splitlines() if "error" in line] or result.stderr.splitlines()
        raise ClusterError(f"{command[0]} failed to build the emulated CANN libraries: {' '.join(errors[:3])[:500]}")
    return result.stdout
