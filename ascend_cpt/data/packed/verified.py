"""Verifies packed dataset files once per machine, and records which files are verified."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from pathlib import Path

from ascend_cpt.data.packed.checksum import checksum_file
from ascend_cpt.data.packed.manifest import Manifest
from ascend_cpt.errors import DataError
from ascend_cpt.files import write_text
from ascend_cpt.strict_json import JsonError, read_json_object

RECORD_INTERVAL_S = 10.0

logger = logging.getLogger(__name__)


def find_record() -> Path:
    """Return the path of this machine's record in XDG_CACHE_HOME or ~/.cache, which several machines may share."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    host = re.sub(r"[^\w.-]", "_", os.uname().nodename)
    return cache / "ascend_cpt" / f"verified_{host}.json"


def verify_once(manifest: Manifest, record_path: Path) -> int:
    """Verify the checksums of files not yet recorded as verified. Return the number of bytes read.

    The record has each verified file's size, modification time and checksum. Files modified since are read again.

    Raises:
        DataError: a file is missing, or its content differs.
    """
    verified = _read_record(record_path)
    num_bytes, recorded_s, is_recorded = 0, time.monotonic(), True
    for shard in manifest.shards:
        for name, sha256 in ((shard.file, shard.sha256), (shard.index_file, shard.index_sha256)):
            path = (manifest.folder / name).resolve()
            try:
                status = path.stat()
                stamp = [status.st_size, status.st_mtime_ns, sha256]
                if verified.get(str(path)) == stamp:
                    continue
                is_same = checksum_file(path) == sha256
            except OSError as error:
                raise DataError(f"{path}: cannot be read: {error.strerror}; copy it again") from error
            if not is_same:
                raise DataError(
                    f"{path}: content differs from the checksum in {manifest.path}; copy it again from where it was "
                    "packed"
                )
            num_bytes += status.st_size
            verified[str(path)] = stamp
            is_recorded = False
            if time.monotonic() - recorded_s > RECORD_INTERVAL_S:
                _write_record(record_path, verified)
                recorded_s, is_recorded = time.monotonic(), True
    if not is_recorded:
        _write_record(record_path, verified)
    return num_bytes


def _read_record(path: Path) -> dict[str, object]:
    try:
        return read_json_object(path)
    except (OSError, JsonError):
        return {}  # no valid record: verify all files


def _write_record(path: Path, verified: dict[str, object]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        present = {name: stamp for name, stamp in verified.items() if Path(name).is_file()}
        write_text(path, json.dumps(present, indent=1) + "\n")
    except OSError as error:
        logger.warning(
            "%s: cannot be written (%s), so the data will be verified again at the next start; set XDG_CACHE_HOME to a "
            "writable folder",
            path,
            error.strerror,
        )
