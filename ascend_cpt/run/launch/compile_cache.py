"""Chooses a run's compile-cache folder so that a changed run never reuses an earlier run's graph.

MindSpore does not check that a cached graph matches the configuration or code. The key is therefore a hash of
everything that a compiled training step depends on: the whole configuration, the code of this package and of
MindFormers, the version of MindSpore, the number of processes, and the environment variables that change compilation.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ascend_cpt.cluster.job.channel import JobChannel
from ascend_cpt.files import write_text

FOLDER_NAME = "compile_cache"
COMPLETE_NAME = "complete.json"
PACKAGE = Path(__file__).resolve().parents[1]

# These differ between launches of the same run.
_PER_LAUNCH_KEYS = ("load_checkpoint", "resume_training")
_VARIABLES = ("MS_", "HCCL_", "ASCEND_", "MINDSPORE_", "GE_", "TE_", "ENABLE_")
_PER_LAUNCH_VARIABLES = (
    *("MS_ROLE", "MS_NODE_ID", "MS_SCHED_HOST", "MS_SCHED_PORT", "MS_WORKER_IP", "MS_COMPILER_CACHE_PATH"),
    *("ASCEND_CPT_", "ASCEND_GLOBAL_", "ASCEND_SLOG_", "ASCEND_RT_", "ASCEND_VISIBLE_"),
)


def find_cache_folder(
    run_dir: Path, sections: Mapping[str, Any], cpt: Mapping[str, Any], *, world_size: int, environ: Mapping[str, str]
) -> Path:
    """Return the folder in `run_dir` for the graphs of this configuration, code and environment.

    Args:
        run_dir: The run folder.
        sections: The compiled MindFormers configuration.
        cpt: The `cpt` section as configured.
        world_size: Number of processes in the job.
        environ: This process's environment variables.
    """
    values = {
        "sections": {key: value for key, value in sections.items() if key not in _PER_LAUNCH_KEYS},
        "cpt": cpt,
        "world_size": world_size,
        "environment": _choose_variables(environ),
        "code": hash_code(PACKAGE),
        "mindformers": _describe_installed("mindformers"),
        "mindspore": importlib.metadata.version("mindspore"),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    text = json.dumps(values, sort_keys=True, default=str)
    return run_dir / FOLDER_NAME / hashlib.sha256(text.encode()).hexdigest()[:16]


def _choose_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that may change what is compiled. Unknown ones are included to be safe."""
    chosen = {
        name: value
        for name, value in environ.items()
        if name.startswith(_VARIABLES) and not name.startswith(_PER_LAUNCH_VARIABLES)
    }
    return {**chosen, "softnpu": environ.get("ASCEND_CPT_SOFTNPU", "")}


def hash_code(package: Path) -> str:
    """Return a hash of the names and contents of all Python files in a folder."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _describe_installed(package: str) -> str:
    """Return a hash of the names, sizes and times of a package's files, without reading or importing the files."""
    spec = importlib.util.find_spec(package)
    digest = hashlib.sha256()
    for folder in spec.submodule_search_locations or () if spec else ():
        for path in sorted(Path(folder).rglob("*.py")):
            status = path.stat()
            digest.update(f"{path.relative_to(folder)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def prepare_cache(folder: Path, channel: JobChannel) -> bool:
    """Return whether all processes load graphs from `folder`. Otherwise all compile, and save their graphs there.

    A mixture of loading and compiling processes could create communication groups in different orders. Graphs
    with other keys are removed. A process's graph counts as incomplete until it is loaded (`mark_complete`), so
    the next launch compiles if this one crashes while loading.
    """
    own = folder / f"rank_{channel.rank}"
    is_loaded = all(channel.all_gather("compile cache", is_complete(folder, channel.rank)))
    for path in folder.parent.glob(f"*/rank_{channel.rank}"):
        if path != own or not is_loaded:
            shutil.rmtree(path, ignore_errors=True)
    (own / COMPLETE_NAME).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    return is_loaded


def is_complete(folder: Path, rank: int) -> bool:
    """Return whether a rank's graph was saved completely and is undamaged."""
    own = folder / f"rank_{rank}"
    try:
        recorded = json.loads((own / COMPLETE_NAME).read_text(encoding="utf-8"))
        return bool(recorded) and recorded == _hash_files(own)
    except (OSError, ValueError):
        return False


def mark_complete(folder: Path, rank: int) -> None:
    """Record the checksums of a rank's saved graph once the graph has been compiled or loaded."""
    own = folder / f"rank_{rank}"
    if own.is_dir():
        write_text(own / COMPLETE_NAME, json.dumps(_hash_files(own)))


def _hash_files(folder: Path) -> dict[str, str]:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != COMPLETE_NAME)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
