"""The fuzzer finds what it must find; and (slow) a million cases find nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from ascend_cpt.errors import DataError
from tests.attacks.fuzz import __main__ as fuzz_main
from tests.attacks.fuzz import harness
from tests.attacks.fuzz.__main__ import find_problems, run_all
from tests.attacks.fuzz.harness import Prepared, Target, minimize, run_target
from tests.attacks.fuzz.mutate import mutate_bytes
from tests.attacks.fuzz.targets import TARGETS

MIN_CASES, MIN_CASES_OF_A_TARGET = 1_000_000, 5_000
KEPT: list[bytearray] = []


def refuse(case: bytes) -> None:
    if case != b"{}":
        raise DataError("not this")


def fail(case: bytes) -> None:
    if b"\0" in case:
        raise KeyError("x")


def crash(case: bytes) -> None:
    if b"\0" in case:
        os.kill(os.getpid(), signal.SIGSEGV)


def hang(case: bytes) -> None:
    while b"\0" in case:
        pass


def grow(case: bytes) -> None:
    KEPT.append(bytearray(b"x") * (1 << 20))


def fill(case: bytes) -> None:
    assert bytearray(b"x") * (1 << 29)


def make_target(run: Callable[[bytes], None]) -> Target:
    return Target(name="x", num_cases=60, prepare=lambda folder: Prepared(seeds=[b"{}"], mutate=mutate_bytes, run=run))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "problem"),
    [
        (refuse, None),
        (fail, "KeyError at tests/attacks/fuzz/test_fuzz.py"),
        (crash, "signal 11"),
        (hang, "HangError at tests/attacks/fuzz/test_fuzz.py"),
        (grow, "memory grew by"),
        (fill, "x: used "),
    ],
)
def test_the_fuzzer_finds_bugs(
    run: Callable[[bytes], None], problem: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "CASE_LIMIT_S", 0.1)
    monkeypatch.setattr(harness, "MAX_FINDINGS", 1)
    monkeypatch.setattr(fuzz_main, "MAX_PEAK_MB", 500.0)
    num_cases = {fill: 1, hang: 20}.get(run, 60)
    result = run_target(make_target(run), num_cases, 0, lambda done, elapsed_s: None)
    problems = find_problems([result])
    if problem is None:
        assert not problems and 0 < result.num_accepted < num_cases
    else:
        assert any(problem in line for line in problems), problems


def test_a_case_is_shortened(tmp_path: Path) -> None:
    prepared = make_target(fail).prepare(tmp_path)
    try:
        fail(b"\0")
    except KeyError as error:
        where = harness.describe_place(error)
    finding = harness.Finding(target="x", index=0, case=b"abc\0def" * 9, where=where, text="")
    assert minimize(prepared, finding) == b"\0"


def test_cases_depend_on_the_seed_only(tmp_path: Path) -> None:
    target = next(target for target in TARGETS if target.name == "records")
    prepared = target.prepare(tmp_path)
    first, again, other = (
        [harness.make_case("records", prepared, seed, index) for index in range(200)] for seed in (1, 1, 2)
    )
    assert first == again != other


def test_the_shares_of_a_whole_run() -> None:
    assert sum(target.num_cases for target in TARGETS) >= MIN_CASES
    assert min(target.num_cases for target in TARGETS) >= MIN_CASES_OF_A_TARGET
    assert len({target.name for target in TARGETS}) == len(TARGETS)


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_a_million_cases() -> None:
    results = run_all(TARGETS, share=1.0, seed=0)
    assert sum(result.num_cases for result in results) >= MIN_CASES
    assert find_problems(results) == []
