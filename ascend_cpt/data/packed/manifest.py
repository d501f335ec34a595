"""The manifest of a packed dataset: what is in its files, where it came from, and whether it is whole.

A dataset is `{prefix}.manifest.json` and the shard files beside it. The manifest is written last, so a dataset that has
one was finished. File names in it are relative to its folder: a dataset may be moved or copied to another node.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ascend_cpt.data.packed.checksum import checksum_file
from ascend_cpt.data.tokenizing.info import TokenizerInfo
from ascend_cpt.errors import DataError
from ascend_cpt.files import write_text

FORMAT_VERSION = 1
MANIFEST_SUFFIX = ".manifest.json"


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of a dataset: the output of one shard."""

    file: str
    """Data file, relative to the manifest's folder."""
    size_bytes: int
    sha256: str
    """See `files.checksum_file`: it does not depend on whether the file is sparse."""
    index_file: str
    """The file that belongs to it (`.db` of a MindRecord)."""
    index_size_bytes: int
    index_sha256: str
    num_rows: int
    num_tokens: int
    """Real tokens in the rows: padding is not counted, EOD (and BOS) are."""
    num_documents: int
    text_bytes: int
    """UTF-8 bytes of the documents' text."""
    tail_tokens: int = 0
    """Real tokens in the last row when it is padded, 0 when it is full (or there is none)."""
    dropped_tokens: int = 0
    """Tokens of the last, incomplete row when tails are dropped."""


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One input file as it was read."""

    path: str
    """Relative to the input folder, or as given."""
    size_bytes: int
    fingerprint: str
    """SHA-256 over its size and samples of its content; notices a changed file without reading the whole."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A packed dataset of one JSON key."""

    key: str
    """The column or JSON key whose text was packed."""
    output_format: str
    """`mindrecord` (rows of seq_length + 1 int32) or `mmap` (whole documents)."""
    seq_length: int | None
    """Trained tokens in a row, which holds one more; None for `mmap`."""
    tokenizer: TokenizerInfo
    shards: tuple[Shard, ...]
    sources: tuple[SourceFile, ...] = ()
    num_records: int = 0
    """Input records that were read."""
    num_filtered: int = 0
    """Records that the handler left out."""
    rejected: dict[str, int] = field(default_factory=dict)
    """Records that could not be packed, counted by kind; listed in `{output_prefix}.rejects.jsonl`."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Documents left out on purpose (duplicates, filters), counted by kind; listed there as well."""
    settings: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)
    """The tokenizing engine and how it was checked."""
    versions: dict[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION
    path: Path | None = field(default=None, compare=False)
    """The manifest's file, when it was read from one or written; not stored."""

    @property
    def folder(self) -> Path:
        """The folder that holds the shard files."""
        assert self.path is not None, "a manifest has a folder once it was read or written"
        return self.path.parent

    @property
    def num_rows(self) -> int:
        return sum(shard.num_rows for shard in self.shards)

    @property
    def num_tokens(self) -> int:
        """Real tokens, EOD included."""
        return sum(shard.num_tokens for shard in self.shards)

    @property
    def num_documents(self) -> int:
        return sum(shard.num_documents for shard in self.shards)

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of the packed documents' text (bits per byte are counted over these)."""
        return sum(shard.text_bytes for shard in self.shards)

    @property
    def dropped_tokens(self) -> int:
        return sum(shard.dropped_tokens for shard in self.shards)

    @property
    def digest(self) -> str:
        """SHA-256 of the content: equal on two nodes when they hold the same rows made with the same tokenizer.

        Sources, settings, engine and versions are dropped: they describe how the dataset was made, not its content.
        """
        record = _to_record(self)
        for name in (
            "sources",
            "num_records",
            "num_filtered",
            "rejected",
            "left_out",
            "settings",
            "engine",
            "versions",
            "totals",
        ):
            record.pop(name)
        record["tokenizer"].pop("name")
        return hashlib.sha256(_dump_canonical(record)).hexdigest()


def write_manifest(manifest: Manifest, path: str | Path) -> Manifest:
    """Write `manifest` to `path` (whole or not at all) and return it with its path set."""
    path = Path(path)
    record = _to_record(manifest) | {"digest": manifest.digest}
    write_text(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return dataclasses.replace(manifest, path=path)


def load_manifest(prefix: str | Path) -> Manifest:
    """Read the manifest of the dataset at `prefix`.

    `prefix` is the dataset's prefix (`.../corpus_text_document`), its manifest, or a folder that holds exactly one.

    Raises:
        DataError: nothing is there, several datasets are, or the manifest is broken.
    """
    path = find_manifest(prefix)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: the manifest cannot be read ({error}); pack the dataset again") from error
    version = record.get("format_version") if isinstance(record, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path}: manifest format {version!r}, this version reads {FORMAT_VERSION}; pack the dataset again"
        )
    try:
        manifest = _from_record(record, path)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: the manifest is incomplete or has an unknown entry ({error}); pack the dataset again"
        ) from error
    if manifest.digest != record.get("digest"):
        raise DataError(
            f"{path}: the manifest was changed after it was written (digest differs); pack the dataset again"
        )
    return manifest


def find_manifest(prefix: str | Path) -> Path:
    """Return the manifest file that `prefix` means (see `load_manifest`), or raise DataError."""
    path = Path(prefix)
    if path.name.endswith(MANIFEST_SUFFIX):
        if path.is_file():
            return path
        raise DataError(f"{path}: no such manifest")
    beside = manifest_path(path)
    if beside.is_file():
        return beside
    if not path.is_dir():
        raise DataError(f"{path}: no packed dataset here (looked for {beside}); make it with tools/preprocess_data.py")
    found = sorted(path.glob("*" + MANIFEST_SUFFIX))
    if not found:
        raise DataError(
            f"{path}: the folder holds no packed dataset (*{MANIFEST_SUFFIX}); make one with preprocess_data.py"
        )
    if len(found) > 1:
        names = [file.name.removesuffix(MANIFEST_SUFFIX) for file in found]
        raise DataError(
            f"{path}: the folder holds several datasets ({', '.join(names)}); give the prefix of one: {path / names[0]}"
        )
    return found[0]


def manifest_path(prefix: str | Path) -> Path:
    """`{prefix}.manifest.json`."""
    return Path(f"{prefix}{MANIFEST_SUFFIX}")


def check_shards(manifest: Manifest, *, checksums: bool = False) -> None:
    """Check that every shard file is there with its recorded size, and with `checksums` its content as well.

    Raises:
        DataError: naming the first file that is missing or differs.
    """
    for shard in manifest.shards:
        for name, size_bytes, sha256 in (
            (shard.file, shard.size_bytes, shard.sha256),
            (shard.index_file, shard.index_size_bytes, shard.index_sha256),
        ):
            path = manifest.folder / name
            if not path.is_file():
                raise DataError(
                    f"{path}: missing, but listed in {manifest.path}; copy it here or pack the dataset again"
                )
            if path.stat().st_size != size_bytes:
                raise DataError(
                    f"{path}: {path.stat().st_size} bytes, the manifest says {size_bytes}; copy it again or pack again"
                )
            if checksums and checksum_file(path) != sha256:
                raise DataError(f"{path}: content differs from the manifest's checksum; copy it again or pack again")


def _to_record(manifest: Manifest) -> dict[str, Any]:
    record = dataclasses.asdict(manifest)
    del record["path"]
    record["totals"] = {
        name: getattr(manifest, name)
        for name in ("num_rows", "num_tokens", "num_documents", "text_bytes", "dropped_tokens")
    }
    return record


def _from_record(record: dict[str, Any], path: Path) -> Manifest:
    values = {name: value for name, value in record.items() if name not in ("totals", "digest")}
    values["tokenizer"] = TokenizerInfo(**values["tokenizer"])
    values["shards"] = tuple(Shard(**shard) for shard in values["shards"])
    values["sources"] = tuple(SourceFile(**source) for source in values["sources"])
    return Manifest(**values, path=path)


def _dump_canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


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
