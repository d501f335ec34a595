"""The forgetting alarm: base, warnings, stopping, and restoring in a resumed run."""

from __future__ import annotations

import math

from ascend_cpt.config.monitoring_schema import ValidationSetConfig
from ascend_cpt.monitor.forgetting import ForgettingAlarm
from ascend_cpt.monitor.record import ValidationRecord, to_values


def make_alarm(on_increase: str = "warn") -> ForgettingAlarm:
    return ForgettingAlarm(
        {
            "general": ValidationSetConfig(path="x", max_increase=0.05, on_increase=on_increase),
            "domain": ValidationSetConfig(path="y"),
        }
    )


def record(step: int, loss: float, name: str = "general") -> ValidationRecord:
    return ValidationRecord(step=step, name=name, loss=loss, num_labels=100)


def test_warning_has_all_values_and_is_not_repeated() -> None:
    alarm = make_alarm()
    losses = [2.0, 2.05, 2.06, 2.07, 2.10, 2.12, 2.0, 2.2]
    verdicts = [alarm.judge(record(step * 10, loss)) for step, loss in enumerate(losses)]
    assert [bool(verdict.message) for verdict in verdicts] == [False, False, True, False, False, True, True, True]
    assert verdicts[2].message == (
        "forgetting: validation set general at step 20 has loss 2.0600, +0.0600 from its baseline 2.0000 at step 0 "
        "(max_increase 0.05)"
    )
    assert "below its alarm level again at step 60" in verdicts[6].message
    assert [verdict.record.alarm for verdict in verdicts] == [False, False, True, True, True, True, False, True]
    assert all(verdict.record.base_loss == 2.0 and verdict.record.base_step == 0 for verdict in verdicts)
    assert not any(verdict.stop for verdict in verdicts)


def test_no_alarm_without_a_limit_and_always_for_nan() -> None:
    alarm = make_alarm()
    for name in ("general", "domain"):
        alarm.judge(record(0, 2.0, name))
    assert not alarm.judge(record(10, 9.0, "domain")).record.alarm
    assert alarm.judge(record(10, math.nan)).record.alarm


def test_stop() -> None:
    alarm = make_alarm("stop")
    assert not alarm.judge(record(0, 2.0)).stop
    assert alarm.judge(record(10, 2.1)).stop and alarm.judge(record(20, 2.1)).message


def test_resumed_run_keeps_base_and_alarm() -> None:
    before = make_alarm("stop")
    records = [to_values(before.judge(record(step, loss)).record) for step, loss in ((0, 2.0), (10, 2.01), (20, 2.1))]
    alarm = make_alarm("stop")
    restored = alarm.restore([*records, {"name": "removed", "step": 0, "loss": 1.0}])
    assert [verdict.stop for verdict in restored] == [True]
    assert alarm.judge(record(30, 2.02)).record.base_loss == 2.0
    warning = make_alarm()
    warning.restore(records)
    assert not warning.judge(record(30, 2.11)).message, "it was printed before the stop"


def test_base_of_a_set_added_later_is_its_first_loss() -> None:
    alarm = make_alarm()
    alarm.restore([to_values(record(0, 2.0, "domain"))])
    assert alarm.judge(record(30, 3.0)).record.base_step == 30
