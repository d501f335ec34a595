"""Sinks for records: the console, `metrics.jsonl` and the configured sinks."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TextIO

from ascend_cpt.config.values import format_count
from ascend_cpt.files import write_text
from ascend_cpt.monitor.experts.load import ExpertsRecord, format_experts
from ascend_cpt.monitor.goodput.start import StartRecord
from ascend_cpt.monitor.history import read_lines
from ascend_cpt.monitor.record import DataRecord, Record, StepRecord, TaskRecord, ValidationRecord, is_cell, to_values

logger = logging.getLogger(__name__)


class Sink(Protocol):
    """Receives a run's records in order."""

    def write(self, record: Record) -> None:
        """Write a record."""

    def close(self) -> None:
        """Flush and close."""


class SinkGroup:
    """Combines several sinks. A failing sink is dropped with one warning, because monitoring must not stop training."""

    def __init__(self, sinks: Sequence[Sink], console: TextIO | None) -> None:
        self._sinks, self._console = list(sinks), console
        self._is_closed = False

    def __bool__(self) -> bool:
        return bool(self._sinks)

    def write(self, record: Record) -> None:
        """Write a record to every sink."""
        for sink in tuple(self._sinks):
            try:
                sink.write(record)
            except Exception as error:
                self._drop(sink, error)

    def warn(self, message: str) -> None:
        """Log and print a warning."""
        logger.warning("%s", message)
        if self._console is not None:
            print(f"warning: {message}", file=self._console, flush=True)

    def close(self) -> None:
        """Close every sink. A second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        for sink in tuple(self._sinks):
            try:
                sink.close()
            except Exception as error:
                self._drop(sink, error)

    def _drop(self, sink: Sink, error: Exception) -> None:
        self._sinks.remove(sink)
        self.warn(f"{type(sink).__name__} failed and is disabled for this launch: {error!r}")


class ConsoleSink:
    """Prints a line every `print_every_steps` steps, and for first, last and skipped steps, validations and tasks."""

    def __init__(self, stream: TextIO, print_every_steps: int) -> None:
        self._stream, self._every = stream, max(1, print_every_steps)

    def write(self, record: Record) -> None:
        """Print the record if it is due."""
        if isinstance(record, ValidationRecord):
            print(format_validation(record), file=self._stream, flush=True)
        elif isinstance(record, TaskRecord):
            print(format_task(record), file=self._stream, flush=True)
        elif isinstance(record, ExpertsRecord):
            print(format_experts(record), file=self._stream, flush=True)
        elif isinstance(record, StartRecord):
            print(format_start(record), file=self._stream, flush=True)
        elif isinstance(record, StepRecord) and (
            record.step % self._every == 0 or record.step in (1, record.total_steps) or record.skipped
        ):
            print(format_step(record), file=self._stream, flush=True)

    def close(self) -> None:
        """Do nothing, because every line is already flushed."""


class JsonlSink:
    """Appends every record to a JSON Lines file, after dropping records beyond `resume_step`."""

    def __init__(self, path: Path, resume_step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, (line for _, line in read_lines(path, resume_step)) if resume_step else "")
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, record: Record) -> None:
        """Append the record. Validations are synced to disk, as other nodes may choose the best checkpoint by them."""
        self._file.write(json.dumps(to_values(record)) + "\n")
        if isinstance(record, (ValidationRecord, TaskRecord)):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def format_step(record: StepRecord) -> str:
    """Return a step's progress line."""
    tokens_per_step = record.tokens / record.step
    remaining_s = (record.total_steps - record.step) * tokens_per_step / record.tokens_per_s
    norm = "" if record.grad_norm is None else f"  grad-norm {record.grad_norm:.3g}"
    tflops = "" if record.tflops_per_device is None else f"  {record.tflops_per_device:.3g} TFLOPS/device"
    mfu = "" if record.mfu is None else f"  MFU {record.mfu:.1%}"
    skipped = f"  SKIPPED ({record.skipped}; {record.num_skipped} so far)" if record.skipped else ""
    phase = f"  {record.phase}" if record.phase else ""
    return (
        f"step {record.step:>{len(str(record.total_steps))}}/{record.total_steps}{phase}  loss {record.loss:.4f}  "
        f"lr {record.learning_rate:.3e}{norm}  {format_count(record.tokens_per_s)} tokens/s{tflops}{mfu}  "
        f"{format_count(record.tokens)} tokens  ETA {format_duration(remaining_s)}{skipped}"
    )


def format_validation(record: ValidationRecord) -> str:
    """Return a validation set's line."""
    line = (
        f"validation at step {record.step}: {record.name}  loss {record.loss:.4f}  perplexity {record.perplexity:.2f}"
    )
    if record.bits_per_byte is not None:
        line += f"  bits/byte {record.bits_per_byte:.4f}"
    if record.base_loss is not None and record.step != record.base_step:
        line += f"  ({record.loss - record.base_loss:+.4f} from step {record.base_step})"
    return line + ("  ALARM" if record.alarm else "")


def format_task(record: TaskRecord) -> str:
    """Return a task's line, with the watched metric first and then the others, without cells."""
    line = f"task at step {record.step}: {record.name}  {record.metric} {record.score:.4f}"
    if record.base_score is not None and record.step != record.base_step:
        line += f"  ({record.score - record.base_score:+.4f} from step {record.base_step})"
    others = [
        f"  {metric} {value:.4f}"
        for metric, value in record.values.items()
        if metric != record.metric and not is_cell(metric)
    ]
    return line + "".join(others) + f"  {record.num_items} items" + ("  ALARM" if record.alarm else "")


def format_start(record: StartRecord) -> str:
    """Return the line with the time to the first step and its parts."""
    parts = [
        f"{name} {seconds:.1f} s"
        for name, seconds in (
            ("import", record.import_s),
            ("data", record.data_s),
            ("weights", record.weights_s),
            ("validation", record.validation_s),
            ("compile and step", record.compile_s),
        )
    ]
    return f"first step after {record.total_s:.1f} s: {', '.join(parts)}"


def format_account(record: DataRecord) -> list[str]:
    """Return a line for each source with its tokens in each phase and its epochs."""
    lines = []
    for source, epochs in record.epochs.items():
        by_phase = [
            f"{format_count(tokens[source])} in {phase}" for phase, tokens in record.tokens.items() if source in tokens
        ]
        lines.append(f"{source}: {', '.join(by_phase) or 'none'}; {epochs:.2f} epochs")
    return lines


def format_duration(seconds: float) -> str:
    """Return `h:mm:ss`, or `Nd h:mm:ss` from one day on."""
    days, rest = divmod(round(seconds), 86400)
    hours, rest = divmod(rest, 3600)
    text = f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
    return f"{days}d {text}" if days else text
