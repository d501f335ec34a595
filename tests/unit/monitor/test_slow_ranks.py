"""Which ranks are reported as slow, from times as the ranks exchange them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from ascend_cpt.monitor.goodput.slow_ranks import (
    NUM_EXCEPTIONS,
    NUM_MEASUREMENTS,
    WINDOW,
    NewSlowRanks,
    RanksRecord,
    RankTimes,
    SlowRankDetector,
)
from ascend_cpt.monitor.record import parse_record, to_values
from ascend_cpt.monitor.summary import describe_slow_ranks

NODES = ("a", "a", "b", "b")
NORMAL = RankTimes(step_s=1.0, data_wait_s=0.01, computing_s=0.002, late_s=0.003)


def times(**of_rank_2: float) -> list[RankTimes]:
    return [NORMAL, NORMAL, RankTimes(**{**vars(NORMAL), **of_rank_2}), NORMAL]


def fill(detector: SlowRankDetector, *, step: int = 200, **of_rank_2: float) -> RanksRecord:
    """Return the record after enough measurements for a judgement, which are two windows."""
    records = [detector.add(step, times(**of_rank_2), NODES) for _ in range(NUM_MEASUREMENTS)]
    assert [k for k, record in enumerate(records, 1) if record] == [WINDOW, 2 * WINDOW]
    assert records[-1] is not None
    return records[-1]


@pytest.mark.parametrize(
    ("of_rank_2", "cause", "excess", "words"),
    [
        ({"computing_s": 0.003}, "computing", 0.5, "computes 50% slower than the median rank"),
        ({"data_wait_s": 0.31}, "data", 0.3, "waits for data 30% of the step time longer than the median rank"),
        ({"late_s": 0.203}, "between steps", 0.2, "arrives 20% of the step time later than the median rank"),
    ],
)
def test_each_cause_is_named(of_rank_2: dict[str, float], cause: str, excess: float, words: str) -> None:
    detector = SlowRankDetector(0.1)
    record = fill(detector, **of_rank_2)
    assert record.slow == [{"rank": 2, "node": "b", "cause": cause, "excess": pytest.approx(excess)}]
    assert NewSlowRanks().describe(record) == [f"rank 2 (node b) {words}"]
    assert (record.num_ranks, record.step_s, record.computing_s) == (4, 1.0, 0.002)


def test_differences_below_the_limit_are_not_reported() -> None:
    assert fill(SlowRankDetector(0.1), computing_s=0.00215, data_wait_s=0.1).slow == []
    assert len(fill(SlowRankDetector(0.05), computing_s=0.00215).slow) == 1


def test_one_hiccup_is_not_a_slow_rank() -> None:
    detector = SlowRankDetector(0.1)
    detector.add(25, times(data_wait_s=0.9, late_s=0.9), NODES)
    records = [detector.add(50, times(), NODES) for _ in range(WINDOW - 1)]
    assert records[-1] is not None and records[-1].slow == []


def test_most_measurements_may_be_disturbed_by_other_processes() -> None:
    detector = SlowRankDetector(0.1)
    for k in range(NUM_MEASUREMENTS):
        record = detector.add(25, times(computing_s=0.02 if k % 3 else 0.002), NODES)
    assert record is not None and record.slow == []


@pytest.mark.parametrize(("num_normal", "is_slow"), [(NUM_EXCEPTIONS, True), (NUM_EXCEPTIONS + 1, False)])
def test_a_slow_rank_exceeds_the_others_in_nearly_all_measurements(num_normal: int, is_slow: bool) -> None:
    detector = SlowRankDetector(0.1)
    for k in range(NUM_MEASUREMENTS):
        record = detector.add(25, times(computing_s=0.002 if k < num_normal else 0.003), NODES)
    assert record is not None and bool(record.slow) == is_slow


def test_noise_that_is_the_same_on_all_ranks_causes_no_warning() -> None:
    generator = np.random.default_rng(0)
    detector, slow = SlowRankDetector(0.1), 0
    for _ in range(100 * NUM_MEASUREMENTS):
        pair = [replace(NORMAL, computing_s=float(value)) for value in generator.lognormal(0, 0.4, 2)]
        record = detector.add(25, pair, ("a", "b"))
        slow += bool(record is not None and record.slow)
    assert slow <= 2, "windows of 200"


def test_records_of_earlier_versions_are_read() -> None:
    values = {**to_values(fill(SlowRankDetector(0.1))), "probe_s": 0.1}
    del values["computing_s"]
    line = json.dumps(values).encode()
    assert parse_record(line)["probe_s"] == 0.1


def test_a_judgement_of_computing_holds_until_the_next_one() -> None:
    detector = SlowRankDetector(0.1)
    assert [one["cause"] for one in fill(detector, computing_s=0.003).slow] == ["computing"]
    # Exchanges without a measurement: those of short steps.
    records = [detector.add(25, [replace(one, computing_s=0.0) for one in times()], NODES) for _ in range(WINDOW)]
    assert records[-1] is not None and [one["rank"] for one in records[-1].slow] == [2]
    assert fill(detector).slow == []


def test_a_rank_is_warned_about_once_until_it_has_recovered() -> None:
    detector, new = SlowRankDetector(0.1), NewSlowRanks()
    assert len(new.describe(fill(detector, computing_s=0.003))) == 1
    assert new.describe(fill(detector, computing_s=0.004)) == []
    assert new.describe(fill(detector)) == []
    assert len(new.describe(fill(detector, computing_s=0.003))) == 1


def test_one_of_two_ranks_is_found() -> None:
    detector = SlowRankDetector(0.1)
    pair = [NORMAL, RankTimes(**{**vars(NORMAL), "computing_s": 0.004})]
    records = [detector.add(step, pair, ("a", "b")) for step in range(NUM_MEASUREMENTS)]
    assert records[-1] is not None and [one["rank"] for one in records[-1].slow] == [1]


def test_records_are_read_back_and_summarized() -> None:
    detector = SlowRankDetector(0.1)
    written = [
        fill(detector, step=200),
        fill(detector, step=400, computing_s=0.003),
        fill(detector, step=600, computing_s=0.004),
    ]
    records = [parse_record(json.dumps(to_values(record)).encode()) for record in written]
    assert [record["step"] for record in records] == [200, 400, 600]
    assert describe_slow_ranks(records) == [
        "rank 2 (node b) computes 100% slower than the median rank in 2 of 3 windows"
    ]
    # Once and over: not worth a line.
    assert describe_slow_ranks([records[1], records[0]]) == []
