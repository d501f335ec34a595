"""Find the input files of `--input`, their formats and fingerprints."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ascend_cpt.errors import DataError

FORMATS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "json",
    ".txt": "txt",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".idx": "indexed",
}
"""File ending (lower case) → format. `.json` and `.jsonl` are the same format, an array or lines."""

COMPRESSIONS = {".gz": "gz", ".zst": "zst"}
COMPRESSIBLE = frozenset({"csv", "tsv", "json", "txt"})
"""Formats whose files may be compressed; the others have internal compression."""

_WHOLE_FINGERPRINT_BYTES = 64 << 20
_NUM_SAMPLES = 64
_SAMPLE_BYTES = 64 << 10


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """One file to read."""

    path: str
    name: str
    """Path relative to the input folder, for messages and the manifest."""
    format: str
    size_bytes: int
    compression: str = ""
    """`gz`, `zst` or empty."""


def find_input_files(patterns: Sequence[str], *, only_format: str | None = None) -> list[InputFile]:
    """Return the files of `patterns` (files, folders, globs) in sorted order. Folders are searched recursively.

    Hidden files and files with unknown endings in folders are skipped; a file given by name must have a known ending.
    With `only_format` files of other formats are skipped as well.

    Raises:
        DataError: no such file, no file with a known format, or mixed formats.
    """
    files: dict[str, InputFile] = {}
    for pattern in patterns:
        for file in _find_pattern(pattern, only_format):
            files.setdefault(os.path.realpath(file.path), file)
    found = list(files.values())
    formats = sorted({file.format for file in found})
    if len(formats) > 1:
        examples = ", ".join(f"{name} ({next(file.name for file in found if file.format == name)})" for name in formats)
        raise DataError(f"{' '.join(patterns)}: mixed formats: {examples}; choose one with --format")
    return found


def fingerprint_file(file: InputFile) -> str:
    """Return a SHA-256 over the content of a file, or over samples, size and modification time of a large one."""
    digest = hashlib.sha256()
    # The content of an indexed dataset is in the .bin file.
    paths = [file.path, file.path.removesuffix(".idx") + ".bin"] if file.format == "indexed" else [file.path]
    for path in paths:
        try:
            _add_fingerprint(digest, path)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _add_fingerprint(digest: hashlib._Hash, path: str) -> None:
    with open(path, "rb") as stream:
        status = os.fstat(stream.fileno())
        digest.update(str(status.st_size).encode())
        if status.st_size <= _WHOLE_FINGERPRINT_BYTES:
            while block := stream.read(_SAMPLE_BYTES * 16):
                digest.update(block)
        else:
            digest.update(str(status.st_mtime_ns).encode())
            for k in range(_NUM_SAMPLES):
                stream.seek((status.st_size - _SAMPLE_BYTES) * k // (_NUM_SAMPLES - 1))
                digest.update(stream.read(_SAMPLE_BYTES))


def _find_pattern(pattern: str, only_format: str | None) -> list[InputFile]:
    path = Path(pattern)
    if path.is_dir():
        found = [_describe(file, path) for file in _walk(path)]
    elif path.is_file():
        found = [_describe(path, path.parent)]
        if found == [None]:
            raise DataError(f"{pattern}: unknown file ending; known: {_known_endings()}")
    else:
        matches = sorted(glob.glob(pattern, recursive=True))
        if not matches:
            raise DataError(f"{pattern}: no such file or folder, and no file matches it as a glob")
        found = [
            description
            for match in map(Path, matches)
            for description in (
                [_describe(file, match) for file in _walk(match)] if match.is_dir() else [_describe(match)]
            )
        ]
    files = [file for file in found if file is not None and only_format in (None, file.format)]
    if not files:
        wanted = f"{only_format} " if only_format else ""
        raise DataError(f"{pattern}: contains no {wanted}files to read (endings: {_known_endings()})")
    return files


def _walk(folder: Path) -> list[Path]:
    """Return the files in `folder` and its subfolders, sorted by path, without hidden ones."""
    found = []
    for parent, subfolders, names in os.walk(folder, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(found)


def _describe(path: Path, root: Path | None = None) -> InputFile | None:
    """Return the description of a file, None if its ending is unknown."""
    ending = path.suffix.lower()
    compression = COMPRESSIONS.get(ending, "")
    format_name = FORMATS.get(Path(path.stem).suffix.lower() if compression else ending)
    if format_name is None or (compression and format_name not in COMPRESSIBLE):
        return None
    name = path.relative_to(root).as_posix() if root else path.name
    try:
        with open(path, "rb") as stream:
            size_bytes = os.fstat(stream.fileno()).st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return InputFile(path=str(path), name=name, format=format_name, size_bytes=size_bytes, compression=compression)


def _known_endings() -> str:
    return f"{' '.join(FORMATS)}, text formats also with {' '.join(COMPRESSIONS)}"
