"""Finds the input files given by `--input`, with their formats and fingerprints."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ascend_cpt.data.readers.regular_files import check_regular, expand, open_regular, skip_special, walk
from ascend_cpt.errors import DataError

FORMATS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "json",
    ".txt": "txt",
    ".tokens": "txt",
    ".raw": "txt",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".idx": "indexed",
}
"""File ending (lower case) → format. `.json` and `.jsonl` are the same format, an array or lines. WikiText has
`.tokens` and `.raw`."""

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
    is_format_named: bool = False
    """Whether `format` was given, instead of that of the ending."""


def find_input_files(patterns: Sequence[str], *, only_format: str | None = None) -> list[InputFile]:
    """Return the files matching `patterns` (files, folders, globs) in sorted order. Folders are searched recursively.

    In folders, hidden files, files with unknown endings and non-regular files (pipes, devices) are skipped. A file
    given by name must be regular and have a known ending. A file reachable by several paths (links) is returned once,
    under the first path. With `only_format`, files in other formats are skipped too. A file given by name then has that
    format whatever its ending, and a file that matches a glob has that format if its ending is unknown.

    Raises:
        DataError: no file matches, no file has a known format, or formats are mixed.
    """
    files: dict[tuple[int, int], InputFile] = {}
    for pattern in patterns:
        for file in _find_pattern(pattern, only_format):
            status = os.stat(file.path)
            files.setdefault((status.st_dev, status.st_ino), file)
    found = list(files.values())
    formats = sorted({file.format for file in found})
    if len(formats) > 1:
        examples = ", ".join(f"{name} ({next(file.name for file in found if file.format == name)})" for name in formats)
        raise DataError(f"{' '.join(patterns)}: mixed formats: {examples}; choose one with --format")
    return found


def fingerprint_file(file: InputFile) -> str:
    """Return a SHA-256 of a file's content or, for a large file, of samples, size and modification time."""
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
    with open_regular(path) as stream:
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
    if not pattern or "\0" in pattern:
        raise DataError(f"--input {pattern!r}: a path must have at least one character, and no NUL")
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as error:
        raise DataError(f"--input {pattern[:100]}: {error.strerror}") from error
    if is_folder:
        found = [_describe(file, path) for file in walk(path)]
    elif exists:
        check_regular(path, os.stat(path))
        found = [_describe(path, path.parent, named_format=only_format)]
        if found == [None]:
            raise DataError(
                f"{pattern}: unknown file extension {path.suffix!r} (known: {_known_endings()}); name the format with "
                "--format, for example --format txt"
            )
    else:
        matches = expand(pattern)
        if not matches:
            raise DataError(f"{pattern}: no such file or folder, and no file matches it as a glob")
        found = [
            description
            for match in map(Path, matches)
            for description in (
                [_describe(file, match) for file in walk(match)]
                if match.is_dir()
                else [_describe(match, unknown_format=only_format)]
            )
        ]
    files = [file for file in found if file is not None and only_format in (None, file.format)]
    if not files:
        wanted = f"{only_format} " if only_format else ""
        raise DataError(f"{pattern}: contains no {wanted}files to read (extensions: {_known_endings()})")
    return files


def _describe(
    path: Path, root: Path | None = None, *, named_format: str | None = None, unknown_format: str | None = None
) -> InputFile | None:
    """Return the description of a file, or None if its format is unknown or the file is not regular.

    Args:
        path: The file.
        root: The input folder.
        named_format: The format, which overrides the one implied by the ending.
        unknown_format: The format if the ending is unknown.
    """
    ending = path.suffix.lower()
    compression = COMPRESSIONS.get(ending, "")
    by_ending = FORMATS.get(Path(path.stem).suffix.lower() if compression else ending)
    format_name = named_format or by_ending or unknown_format
    if format_name == "indexed" and by_ending != "indexed":
        raise DataError(f"{path}: not the .idx file of an indexed dataset; give the .idx file, beside its .bin file")
    if format_name is None:
        return None
    if compression and format_name not in COMPRESSIBLE:
        if named_format is None:
            return None
        raise DataError(f"{path}: a compressed {format_name} file cannot be read; decompress it")
    name = path.relative_to(root).as_posix() if root else path.name
    name = os.fsencode(name).decode("utf-8", "replace")  # the manifest is UTF-8, but a file name need not be
    try:
        if skip_special(path, os.stat(path)):
            return None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    with open_regular(path) as stream:
        size_bytes = os.fstat(stream.fileno()).st_size
    return InputFile(
        path=str(path),
        name=name,
        format=format_name,
        size_bytes=size_bytes,
        compression=compression,
        is_format_named=format_name != by_ending,
    )


def _known_endings() -> str:
    return f"{' '.join(FORMATS)}, text formats also with {' '.join(COMPRESSIONS)}"
