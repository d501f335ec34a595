"""The forgetting alarm: base, warnings, patience, stopping, tasks, and restoring in a resumed run."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ascend_cpt.config.values import parse_patience
from ascend_cpt.monitor.forgetting import AlarmLimits, ForgettingAlarm, describe_stop, make_limits
from ascend_cpt.monitor.record import TaskRecord, ValidationRecord, to_values


def make_alarm(**limits: Any) -> ForgettingAlarm:
    return ForgettingAlarm(sets={"general": AlarmLimits(max_change=0.05, **limits), "domain": AlarmLimits()})


def record(step: int, loss: float, name: str = "general") -> ValidationRecord:
    return ValidationRecord(step=step, name=name, loss=loss, num_labels=100)


def score(step: int, value: float, *, higher_is_better: bool = True, metric: str = "acc") -> TaskRecord:
    return TaskRecord(
        step=step, name="arc", metric=metric, score=value, num_items=50, values={metric: value},
        higher_is_better=higher_is_better,
    )  # fmt: skip


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
    values = [to_values(verdict.record) for verdict in verdicts]
    assert [each["alarm"] for each in values] == [False, False, True, True, True, True, False, True]
    assert [each["above_since_step"] for each in values] == [None, None, 20, 20, 20, 20, None, 70]
    assert all(each["base_loss"] == 2.0 and each["base_step"] == 0 for each in values)
    assert not any(verdict.stop for verdict in verdicts)


def test_no_alarm_without_a_limit_and_always_for_nan() -> None:
    alarm = make_alarm()
    for name in ("general", "domain"):
        alarm.judge(record(0, 2.0, name))
    assert not alarm.judge(record(10, 9.0, "domain")).record.alarm
    assert alarm.judge(record(10, math.nan)).record.alarm


def test_stop() -> None:
    alarm = make_alarm(stops=True)
    assert not alarm.judge(record(0, 2.0)).stop
    verdict = alarm.judge(record(10, 2.1))
    assert verdict.stop and verdict.message.endswith("(max_increase 0.05)"), "no patience is named"
    assert alarm.judge(record(20, 2.1)).message


def judge_all(alarm: ForgettingAlarm, losses: list[float]) -> tuple[list[bool], list[str]]:
    """Return `stop` and `message` of validations every 10 steps, from step 0."""
    verdicts = [alarm.judge(record(step * 10, loss)) for step, loss in enumerate(losses)]
    return [verdict.stop for verdict in verdicts], [verdict.message.partition(")")[2] for verdict in verdicts]


@pytest.mark.parametrize(
    ("limits", "left"),
    [
        ({"patience_steps": 25}, ["25 of 25 steps", "15 of 25 steps", "5 of 25 steps", "25 steps used up"]),
        ({"patience_validations": 2}, ["2 of 2 validations", "1 of 2 validations", "2 validations used up"]),
    ],
)
def test_patience_counts_from_the_first_validation_above(limits: dict[str, int], left: list[str]) -> None:
    losses = [2.0, 2.0, *[2.1] * len(left)]
    stops, messages = judge_all(make_alarm(stops=True, **limits), losses)
    assert stops == [False] * (len(losses) - 1) + [True]
    assert messages[:2] == ["", ""]
    for message, words in zip(messages[2:], left, strict=True):
        assert message.startswith(", beyond its limit since step 20; ") and words in message, message


@pytest.mark.parametrize("limits", [{"patience_steps": 20}, {"patience_validations": 2}])
def test_patience_starts_again_after_a_recovery(limits: dict[str, int]) -> None:
    losses = [2.0, 2.1, 2.1, 2.0, 2.1, 2.1, 2.1]
    stops, messages = judge_all(make_alarm(stops=True, **limits), losses)
    assert stops == [False] * 6 + [True]
    assert "since step 40" in messages[4] and "since step 40" in messages[6]


@pytest.mark.parametrize("limits", [{"patience_steps": 30}, {"patience_validations": 3}])
@pytest.mark.parametrize("resume_after", range(1, 6))
def test_resumed_run_stops_at_the_same_step(limits: dict[str, int], resume_after: int) -> None:
    losses = [2.0, 2.1, 2.2, 2.1, 2.1, 2.1]
    whole = make_alarm(stops=True, **limits)
    records = [to_values(whole.judge(record(step * 10, loss)).record) for step, loss in enumerate(losses)]
    resumed = make_alarm(stops=True, **limits)
    restored = resumed.restore(records[:resume_after])
    stops = [verdict.stop for verdict in restored]
    later = [resumed.judge(record(step * 10, losses[step])) for step in range(resume_after, len(losses))]
    assert [*stops, *(verdict.stop for verdict in later)] == [step >= 4 for step in range(resume_after - 1, 6)]
    assert [to_values(verdict.record) for verdict in later] == records[resume_after:]


def test_longer_patience_continues_a_stopped_run() -> None:
    records = [to_values(record(step * 10, loss)) for step, loss in enumerate([2.0, 2.1, 2.1])]
    for patience, stop in ((10, True), (20, False)):
        (verdict,) = make_alarm(stops=True, patience_steps=patience).restore(records)
        assert verdict.stop == stop and verdict.record.above_since_step == 10


def test_limits_from_settings() -> None:
    def make(text: str | None) -> AlarmLimits:
        patience = None if text is None else parse_patience(text)
        return make_limits(0.05, stops=True, patience=patience, tokens_per_step=1000)

    assert make("20K") == AlarmLimits(max_change=0.05, stops=True, patience_steps=20)
    assert make("7 steps") == AlarmLimits(max_change=0.05, stops=True, patience_steps=7)
    assert make("3 validations") == AlarmLimits(max_change=0.05, stops=True, patience_validations=3)
    assert make(None) == AlarmLimits(max_change=0.05, stops=True)


def test_resumed_run_keeps_base_and_alarm() -> None:
    before = make_alarm(stops=True)
    records = [to_values(before.judge(record(step, loss)).record) for step, loss in ((0, 2.0), (10, 2.01), (20, 2.1))]
    alarm = make_alarm(stops=True)
    restored = alarm.restore([*records, {"name": "removed", "step": 0, "loss": 1.0}])
    assert [verdict.stop for verdict in restored] == [True]
    assert to_values(alarm.judge(record(30, 2.02)).record)["base_loss"] == 2.0
    warning = make_alarm()
    warning.restore(records)
    assert not warning.judge(record(30, 2.11)).message, "it was printed before the stop"


def test_base_of_a_set_added_later_is_its_first_loss() -> None:
    alarm = make_alarm()
    alarm.restore([to_values(record(0, 2.0, "domain"))])
    assert alarm.judge(record(30, 3.0)).record.base_step == 30


@pytest.mark.parametrize(("higher_is_better", "worse", "better"), [(True, 0.4, 0.9), (False, 0.6, 0.1)])
def test_score_of_a_task(higher_is_better: bool, worse: float, better: float) -> None:
    limits = AlarmLimits(max_change=0.05, stops=True, patience_validations=1, metric="acc")
    alarm = ForgettingAlarm(tasks={"arc": limits})
    values = [0.5, better, worse, 0.5, worse, worse]
    verdicts = [alarm.judge(score(step, value, higher_is_better=higher_is_better)) for step, value in enumerate(values)]
    assert [verdict.stop for verdict in verdicts] == [False] * 5 + [True]
    assert [verdict.record.above_since_step for verdict in verdicts] == [None, None, 2, None, 4, 4]
    assert verdicts[2].message == (
        f"forgetting: task arc at step 2 has acc {worse:.4f}, {worse - 0.5:+.4f} from its baseline 0.5000 at step 0 "
        "(max_drop 0.05), beyond its limit since step 2; 1 of 1 validations of patience left"
    )
    assert verdicts[3].message == "task arc is within its limit again at step 3: acc 0.5000"
    resumed = ForgettingAlarm(tasks={"arc": limits})
    restored = resumed.restore([to_values(verdict.record) for verdict in verdicts[:5]])
    assert [verdict.record for verdict in restored] == [verdicts[4].record]
    last = resumed.judge(score(5, worse, higher_is_better=higher_is_better))
    assert last == verdicts[5] and to_values(last.record)["base_score"] == 0.5


def test_message_of_a_stop_names_the_keys_to_change() -> None:
    limits = AlarmLimits(max_change=0.05, stops=True)
    alarm = ForgettingAlarm(sets={"general": limits}, tasks={"arc": limits})
    alarm.judge(record(0, 2.0))
    alarm.judge(score(0, 0.5))
    one, other = alarm.judge(record(5, 2.1)), alarm.judge(score(5, 0.4))
    assert describe_stop([one], "; saved in x") == (
        f"stopped by on_increase: {one.message}; saved in x; to continue, raise max_increase or patience, or set "
        "on_increase to warn"
    )
    assert describe_stop([other]).endswith("to continue, raise max_drop or patience, or set on_drop to warn")
    both = describe_stop([one, other])
    assert both.startswith("stopped by on_increase and on_drop: forgetting: validation set general ")
    assert "; forgetting: task arc at step 5 " in both and both.count("\n") == 0


def test_scores_of_another_metric_are_not_a_baseline() -> None:
    alarm = ForgettingAlarm(tasks={"arc": AlarmLimits(max_change=0.05, metric="acc")})
    assert not alarm.restore([to_values(score(0, 0.9, metric="acc_norm"))])
    assert alarm.judge(score(5, 0.4)).record.base_step == 5


def test_set_and_task_of_the_same_name_have_their_own_baselines() -> None:
    alarm = ForgettingAlarm(sets={"arc": AlarmLimits(max_change=0.05)}, tasks={"arc": AlarmLimits(max_change=0.05)})
    restored = alarm.restore([to_values(record(0, 2.0, "arc")), to_values(score(0, 0.5))])
    assert len(restored) == 2
    assert not alarm.judge(record(1, 2.01, "arc")).record.alarm and alarm.judge(score(1, 0.4)).record.alarm
