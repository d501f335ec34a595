"""The alarm for forgetting: a held-out loss that has risen too far above what it was before the first step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ascend_cpt.config.monitoring_schema import ValidationSetConfig
from ascend_cpt.monitor.record import ValidationRecord


@dataclass(frozen=True, kw_only=True)
class AlarmVerdict:
    """A judged record; `message` is there when people should hear of it, `stop` when the run should end."""

    record: ValidationRecord
    message: str = ""
    stop: bool = False


class ForgettingAlarm:
    """Compares each validation with the base of its set, the first record of the run.

    Several alarms in a row are told once, and again whenever the loss has risen by another `max_increase`.
    """

    def __init__(self, sets: Mapping[str, ValidationSetConfig]) -> None:
        self._sets = sets
        self._bases: dict[str, tuple[int, float]] = {}
        self._told: dict[str, float] = {}  # sets above their limit → the increase that was told last

    def restore(self, records: Iterable[Mapping[str, Any]]) -> list[AlarmVerdict]:
        """Take over the recorded validations of a continued run; return the verdict on the last of each set."""
        last: dict[str, AlarmVerdict] = {}
        for record in records:
            name, step = str(record["name"]), int(record["step"])
            if name in self._sets:
                labels = int(record.get("num_labels", 0))
                last[name] = self.judge(
                    ValidationRecord(step=step, name=name, loss=float(record["loss"]), num_labels=labels)
                )
        return list(last.values())

    def judge(self, record: ValidationRecord) -> AlarmVerdict:
        """Return the record with its base, and whether to warn or to stop."""
        base_step, base_loss = self._bases.setdefault(record.name, (record.step, record.loss))
        limits = self._sets[record.name]
        increase = record.loss - base_loss
        # Written so that NaN is an alarm.
        above = limits.max_increase is not None and not increase <= limits.max_increase
        judged = dataclasses.replace(record, base_loss=base_loss, base_step=base_step, alarm=above)
        if not above:
            recovered = self._told.pop(record.name, None) is not None
            text = f"validation set {record.name} is below its alarm again at step {record.step}: {record.loss:.4f}"
            return AlarmVerdict(record=judged, message=text if recovered else "")
        assert limits.max_increase is not None
        stop = limits.on_increase == "stop"
        told = self._told.get(record.name)
        message = ""
        if stop or told is None or not increase <= told + limits.max_increase:
            self._told[record.name] = increase
            message = (
                f"forgetting: validation set {record.name} at step {record.step} has loss {record.loss:.4f}, "
                f"{increase:+.4f} over its base {base_loss:.4f} of step {base_step} "
                f"(max_increase {limits.max_increase:g})"
            )
        return AlarmVerdict(record=judged, message=message, stop=stop)
