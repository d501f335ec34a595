"""The table of a rehearsal."""

from __future__ import annotations

from pathlib import Path

from ascend_cpt.rehearsal.table import Outcome, Result, describe, has_passed, render_table

PASSED = Outcome(name="steps 1-2", result=Result.PASSED, seconds=12.4, difference=3.14e-6, note="losses")
SKIPPED = Outcome(name="validation", result=Result.SKIPPED, note="not supported with pipeline stages")
FAILED = Outcome(
    name="resume", result=Result.FAILED, seconds=61.5, note="exit code 1: error: bang", log=Path("/tmp/x/launch_2.log")
)
NOT_RUN = Outcome(name="export", result=Result.NOT_RUN)


def test_table_aligns_names_seconds_and_differences() -> None:
    lines = render_table([PASSED, SKIPPED, FAILED, NOT_RUN]).splitlines()
    assert lines == [
        "step        result   seconds  largest difference",
        "steps 1-2   passed        12             3.1e-06  losses",
        "validation  skipped                               not supported with pipeline stages",
        "resume      failed        62                      exit code 1: error: bang",
        "export      not run",
        "log of resume: /tmp/x/launch_2.log",
    ]


def test_a_skipped_step_is_no_failure() -> None:
    assert has_passed([PASSED, SKIPPED])
    assert not has_passed([PASSED, FAILED])
    assert not has_passed([PASSED, NOT_RUN])


def test_lines_of_progress() -> None:
    assert describe(PASSED) == "steps 1-2: passed, 12 s, largest difference 3.1e-06 (losses)"
    assert describe(SKIPPED) == "validation: skipped (not supported with pipeline stages)"
    assert describe(NOT_RUN) == "export: not run"
