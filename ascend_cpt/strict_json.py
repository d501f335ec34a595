"""Reads untrusted JSON with bounded size and depth, and without duplicate names or non-finite numbers.

Python's parser raises a RecursionError on deeply nested text, accepts `NaN`, and keeps the last of two equal names.
Everything that comes with a checkpoint, a model or a dataset is read here instead.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

MAX_BYTES = 1 << 30  # the shard map of a large job has hundreds of megabytes
MAX_DEPTH = 64
MAX_NAME_BYTES = 255  # for a file name, on all common file systems
_MAX_INTEGER = 2**63 - 1

_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_STRING = re.compile(rb'"[^"]*"')
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_INNERMOST = re.compile(rb"\[\]|\{\}")
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'[]{}"'))

T = TypeVar("T")


class JsonError(ValueError):
    """Text that is not JSON, or not the expected JSON. The message is one line."""


def parse_json(text: bytes, *, max_bytes: int = MAX_BYTES) -> Any:
    """Return the value of UTF-8 JSON text.

    Raises:
        JsonError: the text is not valid JSON, is longer than `max_bytes` or nested deeper than `MAX_DEPTH`, or has a
            duplicate name in an object, a non-finite number, or half of a surrogate pair.
    """
    if len(text) > max_bytes:
        raise JsonError(f"has {len(text)} bytes, more than {max_bytes}")
    if _is_deep(text):
        raise JsonError(f"is nested deeper than {MAX_DEPTH} levels")
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_make_object, parse_constant=_refuse_constant)
        if _SURROGATE.search(text):
            # Half of a pair can be neither printed nor part of a file name.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise JsonError(f"is nested deeper than {MAX_DEPTH} levels") from None
    except UnicodeError:
        raise JsonError("is not valid UTF-8") from None
    except JsonError:
        raise
    except ValueError as error:
        raise JsonError(f"is not valid JSON: {error}") from None
    return value


def read_json(path: Path, *, max_bytes: int = MAX_BYTES) -> Any:
    """Return the value in a JSON file. Raises the same errors as `parse_json`.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return parse_json(file.read(max_bytes + 1), max_bytes=max_bytes)


def read_json_object(path: Path, *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Return the object in a JSON file. Raises the same errors as `read_json`.

    Raises:
        JsonError: the value is not an object.
    """
    value = read_json(path, max_bytes=max_bytes)
    if not isinstance(value, dict):
        raise JsonError("is not a JSON object")
    return value


def is_plain_name(name: object) -> bool:
    """Return whether a value names a file in a folder: no path, no `..`, no control characters."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and "/" not in name
        and "\\" not in name
        and name.isprintable()
        and len(name.encode("utf-8", "replace")) <= MAX_NAME_BYTES
    )


def check_plain_name(name: object) -> str:
    """Check and return the name of a file in a folder.

    Raises:
        JsonError: the name is not plain (see `is_plain_name`).
    """
    if not is_plain_name(name):
        raise JsonError(f"{shorten(name)} is not a plain file name")
    assert isinstance(name, str)
    return name


def shorten(value: object) -> str:
    """Format a value for a message, in printable ASCII and at most 80 characters."""
    text = ascii(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def build(cls: type[T], record: object, where: str = "") -> T:
    """Return an instance of the dataclass `cls` from a JSON object, after checking the type of every field.

    Fields may be text, numbers, booleans, None, tuples (from lists), dicts with text as keys, dataclasses, and `Any`.
    Integers have at most 64 bits.

    Raises:
        JsonError: a field is missing or unknown, or has the wrong type.
    """
    if not isinstance(record, dict):
        raise JsonError(f"{where or cls.__name__}: expected an object, got {shorten(record)}")
    hints = typing.get_type_hints(cls)
    assert dataclasses.is_dataclass(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    prefix = f"{where}." if where else ""
    values: dict[str, Any] = {}
    for name, value in record.items():
        if name not in fields:
            raise JsonError(f"{prefix}{shorten(name)}: unknown name")
        values[name] = _convert(hints[name], value, f"{prefix}{name}")
    for name, field in fields.items():
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING and name not in values:
            raise JsonError(f"{prefix}{name}: missing")
    return cls(**values)


def _convert(hint: Any, value: object, where: str) -> Any:
    if hint is Any:
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _convert(next(argument for argument in arguments if argument is not type(None)), value, where)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_convert(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: _convert(arguments[1], item, f"{where}[{shorten(key)}]") for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) <= _MAX_INTEGER else value
    is_right = origin is None and isinstance(value, hint) and isinstance(value, bool) == (hint is bool)
    if not is_right or (hint is int and abs(typing.cast(int, value)) > _MAX_INTEGER):
        raise JsonError(f"{where}: expected {getattr(origin or hint, '__name__', hint)}, got {shorten(value)}")
    return value


def _is_deep(text: bytes) -> bool:
    """Return whether brackets are nested deeper than `MAX_DEPTH`, in time linear in the text per level."""
    if text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
        return False
    structure = _ESCAPE.sub(b"", text) if b"\\" in text else text
    structure = _STRING.sub(b"", structure.translate(None, _NOT_STRUCTURE))
    for _ in range(MAX_DEPTH):
        inner_removed = _INNERMOST.sub(b"", structure)
        if len(inner_removed) == len(structure):
            # Empty or unbalanced. The parser stops at the first unmatched closing bracket.
            return len(structure) - len(structure.lstrip(b"[{")) > MAX_DEPTH
        structure = inner_removed
    return len(structure) > 0


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise JsonError(f"has the name {shorten(twice)} twice in an object")
    return found


def _refuse_constant(name: str) -> Any:
    raise JsonError(f"contains {name}, which is not a number in JSON")
