"""Compare a dataset's files with the checksums of its manifest, each file once as long as it stays untouched."""

from __future__ import annotations

import json
from pathlib import Path

from ascend_cpt.data.files import checksum_file
from ascend_cpt.data.manifest import Manifest
from ascend_cpt.errors import DataError
from ascend_cpt.files import write_text


def verify_once(manifest: Manifest, record_path: Path) -> int:
    """Verify the files of `manifest` that the record does not know as verified; return the bytes that were read.

    The record keeps size, time of change and checksum of every verified file; one that was touched since is read again.

    Raises:
        DataError: naming the first file whose content differs.
    """
    verified = _read_record(record_path)
    num_bytes = 0
    for shard in manifest.shards:
        for name, sha256 in ((shard.file, shard.sha256), (shard.index_file, shard.index_sha256)):
            path = (manifest.folder / name).absolute()
            status = path.stat()
            stamp = [status.st_size, status.st_mtime_ns, sha256]
            if verified.get(str(path)) == stamp:
                continue
            if checksum_file(path) != sha256:
                raise DataError(
                    f"{path}: content differs from the checksum in {manifest.path}; copy it again from where it was "
                    "packed"
                )
            num_bytes += status.st_size
            verified[str(path)] = stamp
            write_text(record_path, json.dumps(verified, indent=1) + "\n")
    return num_bytes


def _read_record(path: Path) -> dict[str, list[object]]:
    try:
        record: dict[str, list[object]] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # Never verified here: all files are read.
    return record
