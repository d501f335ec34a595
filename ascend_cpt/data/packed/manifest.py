"""The manifest of a packed dataset: its files with checksums, tokenizer, sources and settings.

A dataset consists of `{prefix}.manifest.json` and shard files in the same folder. The manifest is written last, so a
dataset with a manifest is complete. File names are relative to the folder, so a dataset can be moved or copied.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ascend_cpt.data.dataset_files import MANIFEST_SUFFIX, find_data_files, strip_ending
from ascend_cpt.data.packed.checksum import checksum_file
from ascend_cpt.data.packed.packing import CONCAT, PACKINGS
from ascend_cpt.data.tokenizing.info import TokenizerInfo
from ascend_cpt.errors import DataError
from ascend_cpt.files import write_text
from ascend_cpt.strict_json import JsonError, build, check_plain_name, read_json_object, shorten

FORMAT_VERSION = 1
OUTPUT_FORMATS = ("mindrecord", "mmap")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One of a dataset's data files, with its index file."""

    file: str
    """Data file, relative to the folder of the manifest."""
    size_bytes: int
    sha256: str
    """Checksum by `checksum_file`, independent of whether the file is sparse."""
    index_file: str
    """Index of the data file (`.db` for MindRecord, `.idx` for mmap)."""
    index_size_bytes: int
    index_sha256: str
    num_rows: int
    num_tokens: int
    """Tokens in the rows, including EOD and BOS, without padding."""
    num_documents: int
    text_bytes: int
    """UTF-8 bytes of the text of the documents."""
    tail_tokens: int = 0
    """Tokens without padding in the last row if it is padded, otherwise 0."""
    dropped_tokens: int = 0
    """Tokens of the last, incomplete row if it was dropped."""
    num_cut_documents: int | None = None
    """Documents with tokens in more than one row; None if unknown: mmap, or written by an earlier version."""


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """An input file."""

    path: str
    """Path relative to the input folder."""
    size_bytes: int
    fingerprint: str
    """See `fingerprint_file`."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A packed dataset for one JSON key."""

    key: str
    """Column or JSON key of the packed text."""
    output_format: str
    """`mindrecord` (rows of seq_length + 1 int32) or `mmap` (whole documents)."""
    seq_length: int | None
    """Trained tokens per row; a row has one more token. None for `mmap`."""
    tokenizer: TokenizerInfo
    shards: tuple[Shard, ...]
    lacks_last_label: bool = False
    """Rows have `seq_length` tokens instead of one more, so their last token has no label: an adopted dataset."""
    packing: str = CONCAT
    """How documents were put into rows: `concat`, `document` or `best-fit`. Rows of an mmap dataset are cut in training
    as by `concat`."""
    sources: tuple[SourceFile, ...] = ()
    num_records: int = 0
    """Number of input records."""
    num_filtered: int = 0
    """Records for which the handler returned no document."""
    rejected: dict[str, int] = field(default_factory=dict)
    """Number of bad records by kind; listed in `{output_prefix}.rejects.jsonl`."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Number of documents dropped by deduplication and filters, by kind; listed in the same file."""
    settings: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)
    """Tokenizing engine and the result of its check."""
    versions: dict[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION
    path: Path | None = field(default=None, compare=False)
    """Path of the manifest file once read or written; not stored."""

    @property
    def folder(self) -> Path:
        """The folder that contains the shard files."""
        assert self.path is not None, "a manifest has a folder after it was read or written"
        return self.path.parent

    @property
    def row_tokens(self) -> int:
        """Number of ids in a row of a MindRecord dataset."""
        assert self.seq_length is not None
        return self.seq_length + (0 if self.lacks_last_label else 1)

    @property
    def num_rows(self) -> int:
        return sum(shard.num_rows for shard in self.shards)

    @property
    def num_tokens(self) -> int:
        """Number of tokens, including EOD but not padding."""
        return sum(shard.num_tokens for shard in self.shards)

    @property
    def num_documents(self) -> int:
        return sum(shard.num_documents for shard in self.shards)

    @property
    def text_bytes(self) -> int:
        """Number of UTF-8 bytes in the packed documents' text, used for bits per byte."""
        return sum(shard.text_bytes for shard in self.shards)

    @property
    def dropped_tokens(self) -> int:
        return sum(shard.dropped_tokens for shard in self.shards)

    @property
    def num_cut_documents(self) -> int | None:
        """Number of documents with tokens in more than one row, or None if unknown."""
        counts = [shard.num_cut_documents for shard in self.shards]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    @property
    def padding_tokens(self) -> int:
        """Number of padding tokens in the rows; 0 for an mmap dataset."""
        return 0 if self.seq_length is None else self.num_rows * self.row_tokens - self.num_tokens

    @property
    def padding_share(self) -> float:
        """Fraction of all row tokens that are padding, from 0 to 1."""
        return self.padding_tokens / max(1, self.num_tokens + self.padding_tokens)

    @property
    def digest(self) -> str:
        """SHA-256 of the content, equal for datasets with the same rows and the same tokenizer.

        Sources, settings, packing, engine and versions are excluded, because they do not describe the content.
        """
        record = _to_record(self)
        for name in (
            "packing",
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
        for shard in record["shards"]:
            shard.pop("num_cut_documents")
        return hashlib.sha256(_dump_canonical(record)).hexdigest()


class NoManifestError(DataError):
    """Raised for a dataset without a manifest, which this package did not pack."""

    def __init__(self, path: Path) -> None:
        super().__init__(self.explain(path))
        self.data_path = path

    @staticmethod
    def explain(path: Path, tokenizer: str | None = None) -> str:
        """Return the message for the dataset at `path`, including the command that writes a manifest."""
        command = f"python tools/inspect_data.py adopt {shlex.quote(str(path))} --tokenizer "
        return (
            f"{path}: has no manifest, so its tokenizer and checksums are unknown; write one with: {command}"
            f"{shlex.quote(tokenizer) if tokenizer else 'TOKENIZER (the folder or model file it was made with)'}"
        )


def describe_packing(manifest: Manifest) -> str:
    """Describe how documents were packed into rows, with the shares of cut documents and padding."""
    if manifest.seq_length is None:
        return "whole documents, cut into rows in training"
    num_cut = manifest.num_cut_documents
    share = "unknown" if num_cut is None else f"{100 * num_cut / max(1, manifest.num_documents):.2f} %"
    return f"{manifest.packing}: share of cut documents {share}, of padding {100 * manifest.padding_share:.2f} %"


def write_manifest(manifest: Manifest, path: str | Path) -> Manifest:
    """Write `manifest` to `path` atomically and return the manifest with its path set."""
    path = Path(path)
    record = _to_record(manifest) | {"digest": manifest.digest}
    write_text(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return dataclasses.replace(manifest, path=path)


def load_manifest(prefix: str | Path) -> Manifest:
    """Read the manifest of the dataset at `prefix`.

    `prefix` is the prefix of the dataset (`.../corpus_text_document`), its manifest, one of its files, or a folder with
    one manifest.

    Raises:
        DataError: there is no dataset, there are several, or the manifest is invalid.
    """
    path = find_manifest(prefix)
    try:
        record = read_json_object(path)
    except (OSError, JsonError) as error:
        raise DataError(f"{path}: the manifest cannot be read ({error}); pack the dataset again") from error
    version = record.get("format_version")
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path}: manifest format {shorten(version)}, expected {FORMAT_VERSION}; pack the dataset again"
        )
    try:
        manifest = _from_record(record, path)
    except JsonError as error:
        raise DataError(
            f"{path}: the manifest is incomplete or has an unknown entry ({error}); pack the dataset again"
        ) from error
    if manifest.digest != record.get("digest"):
        raise DataError(
            f"{path}: the manifest was changed after it was written (digest differs); pack the dataset again"
        )
    return manifest


def find_manifest(prefix: str | Path) -> Path:
    """Return the path of the manifest for `prefix` (see `load_manifest`); raise DataError if there is none."""
    path = Path(prefix)
    if path.name.endswith(MANIFEST_SUFFIX):
        if path.is_file():
            return path
        raise DataError(f"{path}: no such manifest")
    beside = manifest_path(path)
    if beside.is_file():
        return beside
    of_file = manifest_path(strip_ending(path))
    if of_file.is_file():
        return of_file
    found = sorted(path.glob("*" + MANIFEST_SUFFIX)) if path.is_dir() else []
    if not found and find_data_files(path):
        raise NoManifestError(path)
    if not path.is_dir():
        raise DataError(f"{path}: no packed dataset here (looked for {beside}); make it with tools/preprocess_data.py")
    if not found:
        raise DataError(f"{path}: contains no packed dataset (*{MANIFEST_SUFFIX}); make one with preprocess_data.py")
    if len(found) > 1:
        names = [file.name.removesuffix(MANIFEST_SUFFIX) for file in found]
        raise DataError(
            f"{path}: contains several datasets ({', '.join(names)}); give the prefix of one: {path / names[0]}"
        )
    return found[0]


def manifest_path(prefix: str | Path) -> Path:
    """Return `{prefix}.manifest.json`."""
    return Path(f"{prefix}{MANIFEST_SUFFIX}")


def check_shards(manifest: Manifest, *, checksums: bool = False) -> None:
    """Check that every shard file exists with its recorded size and, with `checksums`, its recorded content.

    Raises:
        DataError: a file is missing or differs.
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
                    f"{path}: {path.stat().st_size} bytes, expected {size_bytes}; copy it again or pack the "
                    "dataset again"
                )
            if checksums and checksum_file(path) != sha256:
                raise DataError(
                    f"{path}: content differs from the manifest's checksum; copy it again or pack the dataset again"
                )


def _to_record(manifest: Manifest) -> dict[str, Any]:
    record = dataclasses.asdict(manifest)
    del record["path"]
    if not manifest.lacks_last_label:  # unknown to earlier versions
        del record["lacks_last_label"]
    record["totals"] = {
        name: getattr(manifest, name)
        for name in (
            "num_rows",
            "num_tokens",
            "num_documents",
            "num_cut_documents",
            "padding_tokens",
            "text_bytes",
            "dropped_tokens",
        )
    }
    return record


def _from_record(record: dict[str, Any], path: Path) -> Manifest:
    values = {name: value for name, value in record.items() if name not in ("totals", "digest")}
    manifest = build(Manifest, values)
    for shard in manifest.shards:
        for name in (shard.file, shard.index_file):
            check_plain_name(name)
        counts = (shard.size_bytes, shard.index_size_bytes, shard.num_rows, shard.num_tokens, shard.tail_tokens)
        if min(counts) < 0:
            raise JsonError(f"{shard.file}: a count is negative")
    if manifest.packing not in PACKINGS:
        raise JsonError(f"packing: {shorten(manifest.packing)} is none of {', '.join(PACKINGS)}")
    if manifest.output_format not in OUTPUT_FORMATS:
        raise JsonError(f"output_format: {shorten(manifest.output_format)} is none of {', '.join(OUTPUT_FORMATS)}")
    if manifest.output_format == "mindrecord" and (manifest.seq_length is None or manifest.seq_length < 1):
        raise JsonError(f"seq_length: {manifest.seq_length}")
    if manifest.output_format == "mmap" and len(manifest.shards) != 1:
        raise JsonError(f"shards: {len(manifest.shards)} instead of the one pair of files of an mmap dataset")
    return dataclasses.replace(manifest, path=path)


def _dump_canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
