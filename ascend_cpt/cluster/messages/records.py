"""Messages as typed records: dataclasses whose annotations say which values are accepted.

    @dataclass(frozen=True, kw_only=True)
    class Signal:
        number: Annotated[int, one_of(2, 15)]

A record is sent as a JSON object of its fields and its class name. `decode` accepts exactly the fields of the class,
each with a value that its annotation accepts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

Read = Callable[[Any], Any]
Record = TypeVar("Record")
_KIND = "kind"
# Control characters could change what a terminal shows. A tab and a line break are kept.
_CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


class InvalidRecord(ValueError):
    """A message that is not one of the expected records."""


def encode(record: Any) -> bytes:
    """Return the JSON form of a record."""
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return json.dumps({_KIND: type(record).__name__, **values}).encode()


def decode(payload: bytes, kinds: tuple[type, ...]) -> Any:
    """Return the record in a payload, which must be one of the classes `kinds`.

    Raises:
        InvalidRecord: for anything else.
    """
    try:
        values = json.loads(payload)
    except (ValueError, RecursionError):
        raise InvalidRecord("not JSON") from None
    if not isinstance(values, dict):
        raise InvalidRecord("not an object")
    name = values.pop(_KIND, None)
    kind = next((kind for kind in kinds if kind.__name__ == name), None)
    if kind is None:
        raise InvalidRecord("of an unknown kind")
    return read_record(kind, values)


def read_record(kind: Callable[..., Record], values: Any) -> Record:
    """Return a record from the values of its fields.

    Raises:
        InvalidRecord: when a field is missing, unknown, or has a value that is not accepted.
    """
    readers = _list_readers(kind)
    if not isinstance(values, dict) or values.keys() != readers.keys():
        raise InvalidRecord(f"fields other than {', '.join(readers)}")
    return kind(**{name: read(values[name]) for name, read in readers.items()})


@cache
def _list_readers(kind: Any) -> dict[str, Read]:
    readers = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        assert get_origin(hint) is Annotated, f"{kind.__name__}.{name} needs a reader"
        readers[name] = get_args(hint)[1]
    return readers


def whole(minimum: int, maximum: int) -> Read:
    """Accept a whole number within limits."""

    def read(value: Any) -> int:
        if type(value) is not int or not minimum <= value <= maximum:
            raise InvalidRecord("a number out of range")
        return value

    return read


def real(minimum: float, maximum: float) -> Read:
    """Accept a finite number within limits."""

    def read(value: Any) -> float:
        # Compared first, because math.isfinite fails for integers beyond the float range. No range contains NaN.
        if type(value) not in (int, float) or not minimum <= value <= maximum or not math.isfinite(value):
            raise InvalidRecord("a number out of range")
        return float(value)

    return read


def one_of(*allowed: Any) -> Read:
    """Accept one of the given values, with the same type."""

    def read(value: Any) -> Any:
        if not any(type(value) is type(other) and value == other for other in allowed):
            raise InvalidRecord("not one of the allowed values")
        return value

    return read


def text(max_characters: int) -> Read:
    """Accept text of limited length. Control characters are removed, since the text is printed."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or len(value) > max_characters:
            raise InvalidRecord("not a string, or one that is too long")
        # JSON may contain half of a surrogate pair, which cannot be printed.
        return value.encode("utf-8", errors="replace").decode().translate(_CONTROLS)

    return read


def several(read_one: Read, max_items: int) -> Read:
    """Accept a list of limited length whose items `read_one` accepts, and convert it to a tuple."""

    def read(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)) or len(value) > max_items:
            raise InvalidRecord("not a list, or one that is too long")
        return tuple(read_one(item) for item in value)

    return read


def exactly(*read_each: Read) -> Read:
    """Accept a list with one item for each reader."""

    def read(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)) or len(value) != len(read_each):
            raise InvalidRecord("not a list of the expected length")
        return tuple(read_one(item) for read_one, item in zip(read_each, value, strict=True))

    return read


def optional(read_value: Read) -> Read:
    """Also accept null."""
    return lambda value: None if value is None else read_value(value)


def flag(value: Any) -> bool:
    """Accept true and false."""
    if type(value) is not bool:
        raise InvalidRecord("neither true nor false")
    return value


def anything(value: Any) -> Any:
    """Accept any JSON value."""
    return value
