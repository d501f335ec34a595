"""JSON from outside: what is refused, each in one line and without a traceback."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ascend_cpt.strict_json import MAX_DEPTH, JsonError, build, check_plain_name, parse_json, read_json_object

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)


@given(VALUES)
def test_every_value_is_read_as_it_was_written(value: Any) -> None:
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[" * 100_000, "nested deeper than 64"),
        (b'{"a":' * 100_000, "nested deeper than 64"),
        (b"[" * 65 + b"]" * 65, "nested deeper than 64"),
        (b'[{"a":' * 40 + b"1" + b"}]" * 40, "nested deeper than 64"),
        (b"[" * 2000, "nested deeper than 64"),
        (b"]" * 2000, "not valid JSON"),
        (b'"' + b"[" * 2000, "not valid JSON"),
        (b"", "not valid JSON"),
        (b"\0", "not valid JSON"),
        (b'{"a": "\0"}', "not valid JSON"),
        (b"\xff", "not valid UTF-8"),
        (b'"\\ud800"', "not valid UTF-8"),
        (b'{"a": NaN}', "contains NaN"),
        (b'{"a": Infinity}', "contains Infinity"),
        (b'{"a": 1, "a": 2}', "the name 'a' twice"),
        (b"1" * 5000, "not valid JSON"),
        (b"[1]" + b" " * 2000, "has 2003 bytes, more than 1000"),
    ],
)
def test_bad_text_is_refused_in_one_line(text: bytes, message: str) -> None:
    limit = 1000 if b"  " in text else 1 << 30
    with pytest.raises(JsonError, match=message) as caught:
        parse_json(text, max_bytes=limit)
    assert "\n" not in str(caught.value)


def test_brackets_in_text_and_beside_each_other_are_not_nested() -> None:
    text = json.dumps({"[" * 500: '\\"' + "{" * 500, "b": [[] for _ in range(500)]})
    assert parse_json(text.encode()) == json.loads(text)
    deepest = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert parse_json(deepest.encode()) == json.loads(deepest)


def test_reading_takes_linear_time() -> None:
    for text in (b"[" * 5_000_000, b"]" * 5_000_000, b"[]" * 2_500_000, b'"' * 5_000_000, b"\\" * 5_000_000):
        start_s = time.monotonic()
        with pytest.raises(JsonError):
            parse_json(text)
        assert time.monotonic() - start_s < 5


def test_a_file_that_is_no_object_or_too_large(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[1]")
    with pytest.raises(JsonError, match="not a JSON object"):
        read_json_object(path)
    path.write_bytes(b" " * 101)
    with pytest.raises(JsonError, match="more than 100"):
        read_json_object(path, max_bytes=100)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../evil.txt", "/etc/passwd", "a/b", "a\\b", "a\0b", "a\nb", "\x1b[31m", "\ud800", "x" * 256, 3],
)
def test_names_that_are_paths_are_refused(name: object) -> None:
    with pytest.raises(JsonError, match="not a plain file name") as caught:
        check_plain_name(name)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 150


def test_plain_names() -> None:
    for name in ("model.safetensors", "..a", "cpt-model-0000000-0000004.safetensors", "模型.json"):
        assert check_plain_name(name) == name


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    ratio: float = 0.0
    inner: tuple[Inner, ...] = ()
    sizes: dict[str, int] = field(default_factory=dict)
    length: int | None = None


def test_a_record_is_built_with_checked_types() -> None:
    record = {"name": "a", "ratio": 1, "inner": [{"size": 3}], "sizes": {"x": 1}, "length": None}
    assert build(Outer, record) == Outer(name="a", ratio=1.0, inner=(Inner(size=3),), sizes={"x": 1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, "name: expected str, got 3"),
        ({"inner": [{"size": True}]}, r"inner\[0\].size: expected int, got True"),
        ({"inner": [{"size": 1, "x": 1}]}, r"inner\[0\].'x': unknown name"),
        ({"inner": [{}]}, r"inner\[0\].size: missing"),
        ({"inner": 3}, "inner: expected tuple, got 3"),
        ({"inner": [3]}, r"inner\[0\]: expected an object, got 3"),
        ({"sizes": {"x": "1"}}, r"sizes\['x'\]: expected int, got '1'"),
        ({"sizes": []}, "sizes: expected dict, got a list"),
        ({"length": 2**64}, "length: expected int, got 18446744073709551616"),
        ({"ratio": 10**400}, "ratio: expected float"),
        ({"self": 1}, "'self': unknown name"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(JsonError, match=message):
        build(Outer, {"name": "a", **change})
    with pytest.raises(JsonError, match="expected an object"):
        build(Outer, [1])
