"""Rises and recoveries in recorded validations."""

from __future__ import annotations

from ascend_cpt.monitor.rises import Rise, find_rises


def points(alarms: str) -> list[dict[str, object]]:
    """Return validations every 10 steps; `!` stands for one with an alarm."""
    return [{"step": 10 * index, "loss": 2.0 + index, "alarm": mark == "!"} for index, mark in enumerate(alarms)]


def test_every_rise_has_its_start_and_its_recovery() -> None:
    rises = find_rises(points("..!!.!.!"), "loss")
    assert rises == [
        Rise(first_step=20, first_value=4.0, recovered_step=40, recovered_value=6.0),
        Rise(first_step=50, first_value=7.0, recovered_step=60, recovered_value=8.0),
        Rise(first_step=70, first_value=9.0),
    ]
    assert [rise.num_steps for rise in rises] == [20, 10, None]


def test_no_alarm_is_no_rise() -> None:
    assert find_rises(points("...."), "loss") == []
    assert find_rises([{"step": 0, "loss": 2.0}], "loss") == [], "records of old versions have no alarm"
