"""From input records to checked documents; every record that is not packed is counted and listed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ascend_cpt.data.readers.formats import Record
from ascend_cpt.data.readers.formats.base import INVALID_UTF8
from ascend_cpt.data.readers.handlers import Handler
from ascend_cpt.data.readers.input_files import InputFile

MISSING_KEY = "missing_key"
NULL = "null"
WRONG_TYPE = "wrong_type"
EMPTY = "empty"
HANDLER_ERROR = "handler_error"

_DETAIL_CHARS = 200


@dataclass(frozen=True, kw_only=True)
class Reject:
    """A record or document that is not packed."""

    file: str
    position: int
    """Byte or row at which the record begins."""
    line: int | None
    """Its line or row, counted from 1; None where it was not counted."""
    kind: str
    detail: str


@dataclass(kw_only=True)
class Tally:
    """What happened to the records of a shard: records + extra documents = packed documents + rejects + filtered +
    left out."""

    num_records: int = 0
    num_extra: int = 0
    """Documents beyond the first that records held."""
    num_documents: int = 0
    num_filtered: int = 0
    """Records that the handler left out."""
    rejects: list[Reject] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    """Documents left out on purpose, by kind."""

    def check(self) -> None:
        accounted = self.num_documents + len(self.rejects) + self.num_filtered + sum(self.dropped.values())
        assert self.num_records + self.num_extra == accounted, "a record was lost without being counted"


@dataclass(frozen=True, kw_only=True)
class Document:
    """The texts of a document, in the order of the keys."""

    texts: tuple[str, ...]
    text_bytes: tuple[int, ...]
    """UTF-8 bytes of each."""


def extract_documents(
    handler: Handler, keys: Sequence[str], file: InputFile, record: Record, tally: Tally
) -> Iterator[Document]:
    """Yield the good documents of a record and enter the rest into `tally`."""
    tally.num_records += 1
    if record.row is None:
        tally.rejects.append(_reject(file, record, record.problem))
        return
    try:
        rows = list(handler.extract(record.row))
    except Exception as error:  # an error of the user's handler rejects this record
        tally.rejects.append(_reject(file, record, HANDLER_ERROR, f"{type(error).__name__}: {error}"))
        return
    if not rows:
        tally.num_filtered += 1
    tally.num_extra += max(len(rows) - 1, 0)
    for row in rows:
        document = _check_document(keys, row)
        if isinstance(document, Document):
            tally.num_documents += 1
            yield document
        else:
            tally.rejects.append(_reject(file, record, *document))


def _check_document(keys: Sequence[str], row: Mapping[str, Any]) -> Document | tuple[str, str]:
    """Return the document, or the kind and detail of what is wrong with it.

    A document that lacks one of several keys is dropped under all of them, so that the datasets stay aligned.
    """
    texts, sizes = [], []
    for key in keys:
        if key not in row:
            return MISSING_KEY, f"no key {key!r}; there are: {', '.join(map(str, row))}"
        text = row[key]
        if text is None:
            return NULL, key
        try:
            if isinstance(text, bytes):
                text = text.decode("utf-8")
            if not isinstance(text, str):
                return WRONG_TYPE, f"{key} is of type {type(text).__name__}"
            sizes.append(len(text) if text.isascii() else len(text.encode("utf-8")))
        except UnicodeError:
            return INVALID_UTF8, key
        if not text:
            return EMPTY, key
        texts.append(text)
    return Document(texts=tuple(texts), text_bytes=tuple(sizes))


def _reject(file: InputFile, record: Record, kind: str, detail: str = "") -> Reject:
    return Reject(file=file.path, position=record.position, line=record.line, kind=kind, detail=detail[:_DETAIL_CHARS])
