"""Parsing and formatting of numbers."""

from __future__ import annotations

import pytest

from ascend_cpt.config.values import (
    Interval,
    Patience,
    format_bytes,
    format_count,
    parse_count,
    parse_float,
    parse_interval,
    parse_patience,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("300B", 300 * 10**9),
        ("1.6M", 1_600_000),
        ("1_638_400", 1_638_400),
        (5, 5),
        (1e9, 10**9),
        ("2t", 2 * 10**12),
        ("0", 0),
    ],
)
def test_parse_count(text: object, value: int) -> None:
    assert parse_count(text) == value


@pytest.mark.parametrize(
    "text", ["", "B", "-1", "1.5", "many", True, None, [1], "1.0000001M", float("nan"), float("inf")]
)
def test_parse_count_rejects(text: object) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_count(text)


def test_parse_interval() -> None:
    assert parse_interval("1B") == Interval(count=10**9, unit="tokens")
    assert parse_interval("100 steps") == Interval(count=100, unit="steps")
    assert parse_interval("1 step").to_steps(4096) == 1
    assert parse_interval("10K tokens").to_steps(4096) == 2
    assert parse_interval(1).to_steps(4096) == 1
    for text in ("0", "0 steps", "5 epochs", "steps"):
        with pytest.raises(ValueError, match="expected"):
            parse_interval(text)


def test_parse_patience() -> None:
    assert parse_patience("1B") == Patience(count=10**9, unit="tokens")
    assert parse_patience("10K tokens").to_steps(4096) == 2
    assert parse_patience("1 step").to_steps(4096) == 1
    assert parse_patience("1 validation") == Patience(count=1, unit="validations")
    assert parse_patience("3 validations").to_steps(4096) is None and str(parse_patience("2 steps")) == "2 steps"
    for text in ("0", "0 validations", "-1 validations", "1.5 validations", "3 epochs", "validations", True, None):
        with pytest.raises(ValueError, match="expected"):
            parse_patience(text)
    with pytest.raises(ValueError, match="expected"):
        parse_interval("3 validations")


def test_parse_float() -> None:
    assert parse_float("1e-5") == 1e-5
    assert parse_float(3) == 3.0
    for value in ("fast", True, None):
        with pytest.raises(ValueError, match="expected a number"):
            parse_float(value)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (0.5, "0.5"),
        (950, "950"),
        (999, "999"),
        (999.7, "1K"),
        (40_900, "40.9K"),
        (999_499, "999K"),
        (999_500, "1M"),
        (999_999, "1M"),
        (1_640_000, "1.64M"),
        (300e9, "300B"),
        (999_500_000_000, "1T"),
        (1_234_000_000_000_000, "1,230T"),
    ],
)
def test_format_count_has_three_digits_and_no_exponent(count: float, text: str) -> None:
    assert format_count(count) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (950, "950 B"),
        (999.7, "1 KB"),
        (999_999, "1 MB"),
        (17_300_000, "17.3 MB"),
        (999_999_999_999, "1 TB"),
        (1.234e15, "1,230 TB"),
    ],
)
def test_format_bytes_has_three_digits_and_no_exponent(count: float, text: str) -> None:
    assert format_bytes(count) == text
