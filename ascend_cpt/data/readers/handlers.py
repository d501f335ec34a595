"""Handlers: how an input record becomes documents.

A handler is a class with one method, `extract`. It gets a record (a dict of column or key to value) and yields the
documents in it: a dict of `--json-keys` key to text each. One of your own is given as `package.module:Class`:

    class TitleHandler:
        def extract(self, record):
            yield {"text": record["title"] + "\\n\\n" + record["text"]}

A record it yields nothing for is counted as filtered; a document without a text under each key, and a record on which
it raises, are counted and listed as rejected.
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
    """What a handler class offers."""

    def extract(self, record: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
        """Yield the documents of `record`: key to text."""


class GeneralPretrainHandler:
    """Each record is one document: the texts under the keys."""

    reads_only_keys: ClassVar[bool] = True
    """Only the columns of `--json-keys` are needed; a handler without this attribute gets all columns."""

    def extract(self, record: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
        yield record


class WikiTextHandler(GeneralPretrainHandler):
    """Articles of WikiText, whose records are lines: each runs from one `= Title =` to the next."""

    # Headings of sections stand between two and more equals signs with blanks between.
    _title = re.compile(r"\s*= (?!=).*(?<!=) =\s*")

    def begins_document(self, record: Mapping[str, Any]) -> bool:
        """Whether the record is a title. A handler with this method gets the joined records of a document."""
        return any(isinstance(text, str) and self._title.fullmatch(text) for text in record.values())


HANDLERS: dict[str, type[Handler]] = {
    "GeneralPretrainHandler": GeneralPretrainHandler,
    "WikiTextHandler": WikiTextHandler,
}


def load_handler(name: str) -> Handler:
    """Make the handler called `name`: one of HANDLERS, or the user's own as `package.module:Class`.

    Raises:
        DataError: there is no such handler (the nearest name is given), or it cannot be imported.
    """
    if ":" in name:
        return _load_custom(name)
    if name not in HANDLERS:
        nearest = difflib.get_close_matches(name, HANDLERS, n=1, cutoff=0.0)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        raise DataError(
            f"--handler-name {name}: unknown; {hint}Known: {', '.join(HANDLERS)}; "
            "your own is given as package.module:Class"
        )
    return HANDLERS[name]()


def needed_columns(handler: Handler, keys: Sequence[str]) -> tuple[str, ...] | None:
    """The columns that `handler` needs, None for all."""
    return tuple(keys) if getattr(handler, "reads_only_keys", False) else None


def joins_records(handler: Handler) -> bool:
    """Whether several records make one document (see `WikiTextHandler.begins_document`)."""
    return hasattr(handler, "begins_document")


def is_known(handler: Handler) -> bool:
    """Whether the handler is one of HANDLERS, not the user's own."""
    return type(handler) in HANDLERS.values()


def describe_handler(handler: Handler) -> str:
    """Name and, of the user's own, source code: what a rerun compares to notice a change."""
    if is_known(handler):
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
            "its module must be importable: run from its folder or set PYTHONPATH"
        ) from error
    if not callable(getattr(handler_class, "extract", None)):
        raise DataError(f"--handler-name {name}: has no method extract(record)")
    try:
        handler: Handler = handler_class()
    except TypeError as error:
        raise DataError(f"--handler-name {name}: cannot be made without arguments: {error}") from error
    return handler
