"""Numbers as people write them."""

from __future__ import annotations

import pytest

from ascend_cpt.config.values import Interval, format_bytes, format_count, parse_count, parse_float, parse_interval


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
def test_counts(text: object, value: int) -> None:
    assert parse_count(text) == value


@pytest.mark.parametrize(
    "text", ["", "B", "-1", "1.5", "many", True, None, [1], "1.0000001M", float("nan"), float("inf")]
)
def test_no_counts(text: object) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_count(text)


def test_intervals() -> None:
    assert parse_interval("1B") == Interval(count=10**9, unit="tokens")
    assert parse_interval("100 steps") == Interval(count=100, unit="steps")
    assert parse_interval("1 step").to_steps(4096) == 1
    assert parse_interval("10K tokens").to_steps(4096) == 2
    assert parse_interval(1).to_steps(4096) == 1
    for text in ("0", "0 steps", "5 epochs", "steps"):
        with pytest.raises(ValueError, match="expected"):
            parse_interval(text)


def test_floats() -> None:
    assert parse_float("1e-5") == 1e-5
    assert parse_float(3) == 3.0
    for value in ("fast", True, None):
        with pytest.raises(ValueError, match="expected a number"):
            parse_float(value)


def test_counts_for_people() -> None:
    assert [format_count(n) for n in (950, 40_900, 1_640_000, 3 * 10**11)] == ["950", "40.9K", "1.64M", "300B"]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (950, "950"),
        (1000, "1K"),
        (40_900, "40.9K"),
        (999_499, "999K"),
        (999_999, "1M"),
        (999_500_000_000, "1T"),
        (5_000_000_000_000_000, "5,000T"),
    ],
)
def test_counts_have_no_exponent(count: int, text: str) -> None:
    assert format_count(count) == text


def test_sizes_have_no_exponent() -> None:
    assert [format_bytes(size) for size in (950, 999_999, 17_300_000, 999_999_999_999)] == [
        "950 B", "1 MB", "17.3 MB", "1 TB"
    ]  # fmt: skip
