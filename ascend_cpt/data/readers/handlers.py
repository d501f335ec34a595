"""Handlers extract documents from input records.

A handler is a class with a method `extract`, which receives a record (column or key → value) and yields its documents
(key of `--json-keys` → text). A custom handler is selected with `package.module:Class`:

    class TitleHandler:
        def extract(self, record):
            yield {"text": record["title"] + "\\n\\n" + record["text"]}

Records that yield no document are counted as filtered. Documents that lack a text under any key, and records for which
the handler raises an exception, are counted and listed as rejected.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from ascend_cpt.errors import DataError


class Handler(Protocol):
    """The interface of a handler class."""

    def extract(self, record: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
        """Yield the documents of `record` (key → text)."""


class GeneralPretrainHandler:
    """Each record is one document."""

    reads_only_keys: ClassVar[bool] = True
    """Read only the columns of `--json-keys`; handlers without this attribute get all columns."""

    def extract(self, record: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
        yield record


class WikiTextHandler(GeneralPretrainHandler):
    """Joins WikiText lines into articles, each of which extends from one `= Title =` line to the next."""

    # Section headings have two or more equals signs on each side.
    _title = re.compile(r"\s*= (?!=).*(?<!=) =\s*")

    def begins_document(self, record: Mapping[str, Any]) -> bool:
        """Return whether the record starts a document. If a handler has this method, records are joined."""
        return any(isinstance(text, str) and self._title.fullmatch(text) for text in record.values())


HANDLERS: dict[str, type[Handler]] = {
    "GeneralPretrainHandler": GeneralPretrainHandler,
    "WikiTextHandler": WikiTextHandler,
}


def load_handler(name: str) -> Handler:
    """Create the handler `name`: one of HANDLERS, or a custom one as `package.module:Class`.

    Raises:
        DataError: the handler is unknown or cannot be imported.
    """
    if ":" in name:
        return _load_custom(name)
    if name not in HANDLERS:
        nearest = difflib.get_close_matches(name, HANDLERS, n=1, cutoff=0.0)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        raise DataError(
            f"--handler-name {name}: unknown; {hint}Known: {', '.join(HANDLERS)}; "
            "for a custom handler use package.module:Class"
        )
    return HANDLERS[name]()


def needed_columns(handler: Handler, keys: Sequence[str]) -> tuple[str, ...] | None:
    """Return the columns that `handler` needs, or None for all."""
    return tuple(keys) if getattr(handler, "reads_only_keys", False) else None


def joins_records(handler: Handler) -> bool:
    """Return whether several records form one document (see `WikiTextHandler.begins_document`)."""
    return hasattr(handler, "begins_document")


def is_built_in(handler: Handler) -> bool:
    """Return whether the handler is one of HANDLERS, not a custom one."""
    return type(handler) in HANDLERS.values()


def describe_handler(handler: Handler) -> str:
    """Return the handler's name, or a custom handler's source code, for detecting changes."""
    if is_built_in(handler):
        return type(handler).__name__
    try:
        return inspect.getsource(type(handler))
    except (OSError, TypeError):
        return f"{type(handler).__module__}:{type(handler).__qualname__}"


def _load_custom(name: str) -> Handler:
    module_name, _, class_name = name.partition(":")
    try:
        handler_class = getattr(importlib.import_module(module_name), class_name)
    except Exception as error:
        raise DataError(
            f"--handler-name {name}: cannot be loaded ({type(error).__name__}: {error}); "
            "its module must be importable: add its folder to PYTHONPATH"
        ) from error
    if not callable(getattr(handler_class, "extract", None)):
        raise DataError(f"--handler-name {name}: has no method extract(record)")
    try:
        handler: Handler = handler_class()
    except TypeError as error:
        raise DataError(f"--handler-name {name}: cannot be created without arguments: {error}") from error
    return handler
