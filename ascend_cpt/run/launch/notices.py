"""Notifies the webhook of a run's first step, alarms, slow ranks and end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ascend_cpt.cluster.job.webhook import Webhook
from ascend_cpt.cluster.launch.workers.worker_entry import LAUNCHER_PID
from ascend_cpt.errors import CptError
from ascend_cpt.monitor.goodput.slow_ranks import NewSlowRanks, RanksRecord
from ascend_cpt.monitor.goodput.start import StartRecord
from ascend_cpt.monitor.record import Record, TaskRecord, ValidationRecord
from ascend_cpt.monitor.sinks import format_start, format_task, format_validation


class NoticeSink:
    """Sends a notice for the first step of a launch, and when an alarm or a slow rank begins.

    Args:
        webhook: Where to send notices.
        job: The run's name.
    """

    def __init__(self, webhook: Webhook, job: str) -> None:
        self._webhook, self._job = webhook, job
        self._new_slow_ranks = NewSlowRanks()

    def write(self, record: Record) -> None:
        """Send a notice if the record is to be reported."""
        if isinstance(record, StartRecord):
            self._webhook.send("start", self._job, f"training at step {record.step}; {format_start(record)}")
        elif isinstance(record, (ValidationRecord, TaskRecord)):
            if record.alarm and record.above_since_step == record.step:
                text = format_task(record) if isinstance(record, TaskRecord) else format_validation(record)
                self._webhook.send("alarm", self._job, text)
        elif isinstance(record, RanksRecord) and (new := self._new_slow_ranks.describe(record)):
            self._webhook.send("alarm", self._job, "; ".join(new))

    def close(self) -> None:
        """Do nothing: the webhook is closed after the end of the run has been sent."""


@contextmanager
def notifying_end(webhook: Webhook, job: str) -> Iterator[None]:
    """Send a notice when an error ends the run, and close the webhook. The launcher, if any, reports crashes."""
    try:
        yield
    except CptError as error:
        webhook.send("end", job, f"stopped: {error}")
        raise
    except Exception as error:
        if LAUNCHER_PID not in os.environ:
            webhook.send("end", job, f"failed: {type(error).__name__}: {error}")
        raise
    finally:
        webhook.close()
