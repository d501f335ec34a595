"""Extracts and checks the documents in input records. Bad records are counted and listed."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ascend_cpt.data.readers.formats import Record
from ascend_cpt.data.readers.formats.base import INVALID_UTF8, TOO_LONG
from ascend_cpt.data.readers.handlers import Handler
from ascend_cpt.data.readers.input_files import InputFile
from ascend_cpt.terminal_text import one_line

MISSING_KEY = "missing_key"
NULL = "null"
WRONG_TYPE = "wrong_type"
EMPTY = "empty"
HANDLER_ERROR = "handler_error"

_SURROGATE = re.compile("[\ud800-\udfff]")
_DETAIL_CHARS = 200
MAX_LISTED = 10_000
"""Rejects of a shard that are listed; a file can have millions."""


@dataclass(frozen=True, kw_only=True)
class Reject:
    """A record or document that is not packed."""

    file: str
    position: int
    """Byte or row at which the record starts."""
    line: int | None
    """Line or row, from 1; None if not counted."""
    kind: str
    detail: str


def format_reject(reject: Reject) -> str:
    """Return a reject's line for the list. File names and keys need not be valid Unicode."""
    return escape_line(asdict(reject))


def escape_line(record: dict[str, Any]) -> str:
    """Return a record as a line of JSON. If it has a lone surrogate, all characters above ASCII are escaped."""
    line = json.dumps(record, ensure_ascii=False)
    return (json.dumps(record) if _SURROGATE.search(line) else line) + "\n"


@dataclass(kw_only=True)
class Tally:
    """Counts for a shard: records + extra documents = packed documents + rejected + filtered + dropped."""

    num_records: int = 0
    num_extra: int = 0
    """Documents of records after the first one."""
    num_documents: int = 0
    num_filtered: int = 0
    """Records for which the handler returned no document."""
    rejected: dict[str, int] = field(default_factory=dict)
    """Rejected records and documents, by kind."""
    rejects: list[Reject] = field(default_factory=list)
    """The first of them."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Documents dropped by deduplication and filters, by kind."""

    def reject(self, file: InputFile, record: Record, kind: str, detail: str = "") -> None:
        """Count a rejected record or document, and list it if it is among the first."""
        self.rejected[kind] = self.rejected.get(kind, 0) + 1
        if len(self.rejects) < MAX_LISTED:
            detail = detail[:_DETAIL_CHARS]
            self.rejects.append(
                Reject(file=file.path, position=record.position, line=record.line, kind=kind, detail=detail)
            )

    def check(self) -> None:
        accounted = self.num_documents + sum(self.rejected.values()) + self.num_filtered + sum(self.dropped.values())
        assert self.num_records + self.num_extra == accounted, "a record was not counted"


@dataclass(frozen=True, kw_only=True)
class Document:
    """A document's texts, in the order of the keys."""

    texts: tuple[str, ...]
    text_bytes: tuple[int, ...]
    """UTF-8 bytes of each text."""


def extract_documents(
    handler: Handler, keys: Sequence[str], file: InputFile, record: Record, tally: Tally, max_bytes: int
) -> Iterator[Document]:
    """Yield a record's valid documents and add the record's counts and rejects to `tally`.

    Documents with more than `max_bytes` of text under any key are rejected.
    """
    tally.num_records += 1
    if record.row is None:
        tally.reject(file, record, record.problem)
        return
    try:
        rows = list(handler.extract(record.row))
    except Exception as error:  # custom handlers can raise anything, so reject the record
        tally.reject(file, record, HANDLER_ERROR, f"{type(error).__name__}: {error}")
        return
    if not rows:
        tally.num_filtered += 1
    tally.num_extra += max(len(rows) - 1, 0)
    for row in rows:
        document = _check_document(keys, row, max_bytes)
        if isinstance(document, Document):
            tally.num_documents += 1
            yield document
        else:
            tally.reject(file, record, *document)


def _list_keys(row: Mapping[str, Any]) -> str:
    return one_line(", ".join(str(key)[:_DETAIL_CHARS] for key in itertools.islice(row, _DETAIL_CHARS)))


def _check_document(keys: Sequence[str], row: Mapping[str, Any], max_bytes: int) -> Document | tuple[str, str]:
    """Return the document, or the reject's kind and detail.

    A document that lacks a valid text under any key is rejected for all keys, so that the datasets stay aligned.
    """
    if type(row) is not dict and not isinstance(row, Mapping):  # the first is faster
        return WRONG_TYPE, f"the handler returned {type(row).__name__}, not a mapping of key to text"
    texts, sizes = [], []
    for key in keys:
        if key not in row:
            return MISSING_KEY, f"no key {key!r}; available keys: {_list_keys(row)}"
        text = row[key]
        if text is None:
            return NULL, key
        try:
            if isinstance(text, bytes):
                text = text.decode("utf-8")
            if not isinstance(text, str):
                return WRONG_TYPE, f"{key} has type {type(text).__name__}"
            sizes.append(len(text) if text.isascii() else len(text.encode("utf-8")))
        except UnicodeError:
            return INVALID_UTF8, key
        if not text:
            return EMPTY, key
        if sizes[-1] > max_bytes:
            return TOO_LONG, key
        texts.append(text)
    return Document(texts=tuple(texts), text_bytes=tuple(sizes))
