from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ascend_cpt.cluster.job.records import Failure, Value, Values
from ascend_cpt.cluster.launch.coordination.records import (
    FROM_COORDINATOR,
    FROM_LAUNCHER,
    Ended,
    Stop,
    read_outcome,
    write_outcome,
)
from ascend_cpt.cluster.launch.coordination.restart_policy import End, Outcome
from ascend_cpt.cluster.messages.records import InvalidRecord, decode, encode, exactly, one_of, optional, text, whole

KINDS = (*FROM_LAUNCHER, *FROM_COORDINATOR, Value, Failure, Values)


@dataclass(frozen=True, kw_only=True)
class Sample:
    number: Annotated[int | None, optional(whole(0, 9))]
    word: Annotated[str, text(5)]
    pair: Annotated[tuple[int, int], exactly(whole(0, 1), one_of(2, 3))]


def test_records_round_trip() -> None:
    sample = Sample(number=None, word="é", pair=(1, 3))
    assert decode(encode(sample), (Stop, Sample)) == sample


@pytest.mark.parametrize(
    "changes",
    [{"number": 10}, {"number": True}, {"number": 1.0}, {"word": "123456"}, {"word": 1}, {"pair": [1]},
     {"pair": [1, 4]}, {"pair": [1, 2, 3]}, {"pair": {"0": 1}}, {"more": 1}],
)  # fmt: skip
def test_other_values_are_refused(changes: dict[str, Any]) -> None:
    import json

    values = {"kind": "Sample", "number": 1, "word": "x", "pair": [1, 2]}
    assert decode(json.dumps(values).encode(), (Sample,))
    with pytest.raises(InvalidRecord):
        decode(json.dumps(values | changes).encode(), (Sample,))


def test_texts_can_be_printed() -> None:
    payload = b'{"kind": "Failure", "reason": "\\u001b[2Ja\\tb\\nc\\u0000\\u009b\\ud800", "exit_code": 1}'
    assert decode(payload, (Failure,)).reason == "[2Ja\tb\nc?"


def test_outcomes_round_trip_and_are_cut_to_size() -> None:
    outcome = Outcome(end=End.FAILED, code=1, reason="worker 0 failed", lines=("RuntimeError: bang",), step=7)
    assert decode(encode(Ended(outcome=write_outcome(outcome))), (Ended,)).outcome == outcome
    long = Outcome(end=End.FAILED, code=1, reason="x" * 10_000, lines=("y" * 10_000,) * 100)
    read = read_outcome(write_outcome(long))
    assert (len(read.reason), len(read.lines), len(read.lines[0])) == (4000, 20, 2000)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=10,
)
names = st.sampled_from([kind.__name__ for kind in KINDS])
fields = st.sampled_from(["number", "by", "size", "host", "num_restarts", "time_s", "outcome", "topic", "value"])


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(payload: bytes) -> None:
    check(payload)


@given(names, st.dictionaries(fields, json_values, max_size=5))
def test_any_object_is_read_or_refused(name: str, values: dict[str, Any]) -> None:
    import json

    check(json.dumps({"kind": name, **values}).encode())


def check(payload: bytes) -> None:
    try:
        record = decode(payload, KINDS)
    except InvalidRecord:
        return
    assert isinstance(record, KINDS)
