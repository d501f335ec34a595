"""The forgetting alarm: a held-out loss has risen too far above its value before the first step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ascend_cpt.config.monitoring_schema import ValidationSetConfig
from ascend_cpt.monitor.record import ValidationRecord


@dataclass(frozen=True, kw_only=True)
class AlarmVerdict:
    """The verdict on a validation record: `message` is a warning to print, if any; `stop` ends the run."""

    record: ValidationRecord
    message: str = ""
    stop: bool = False


class ForgettingAlarm:
    """Compares each validation with the baseline of its set, the first record of the run.

    Consecutive alarms print one warning, and another one each time the loss has risen by a further `max_increase`.
    """

    def __init__(self, sets: Mapping[str, ValidationSetConfig]) -> None:
        self._sets = sets
        self._bases: dict[str, tuple[int, float]] = {}
        self._last_warned: dict[str, float] = {}  # sets above their limit → the increase of the last warning

    def restore(self, records: Iterable[Mapping[str, Any]]) -> list[AlarmVerdict]:
        """Restore the recorded validations of a resumed run; return the verdict on the last one of each set."""
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
        """Return the record with its baseline, and whether to warn or to stop."""
        base_step, base_loss = self._bases.setdefault(record.name, (record.step, record.loss))
        limits = self._sets[record.name]
        increase = record.loss - base_loss
        # Written so that NaN is an alarm.
        above = limits.max_increase is not None and not increase <= limits.max_increase
        judged = dataclasses.replace(record, base_loss=base_loss, base_step=base_step, alarm=above)
        if not above:
            recovered = self._last_warned.pop(record.name, None) is not None
            text = (
                f"validation set {record.name} is below its alarm level again at step {record.step}: {record.loss:.4f}"
            )
            return AlarmVerdict(record=judged, message=text if recovered else "")
        assert limits.max_increase is not None
        stop = limits.on_increase == "stop"
        last_warned = self._last_warned.get(record.name)
        message = ""
        if stop or last_warned is None or not increase <= last_warned + limits.max_increase:
            self._last_warned[record.name] = increase
            message = (
                f"forgetting: validation set {record.name} at step {record.step} has loss {record.loss:.4f}, "
                f"{increase:+.4f} from its baseline {base_loss:.4f} at step {base_step} "
                f"(max_increase {limits.max_increase:g})"
            )
        return AlarmVerdict(record=judged, message=message, stop=stop)
