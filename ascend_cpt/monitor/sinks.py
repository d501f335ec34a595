"""Where records go: the console and `metrics.jsonl`."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from ascend_cpt.config.values import format_count
from ascend_cpt.monitor.record import StepRecord, ValidationRecord

Record = StepRecord | ValidationRecord


class ConsoleSink:
    """Prints a line for every `print_every_steps` steps, for the last one and for each validation."""

    def __init__(self, stream: TextIO, print_every_steps: int) -> None:
        self._stream, self._every = stream, max(1, print_every_steps)

    def write(self, record: Record) -> None:
        """Print the record, if it is due."""
        if isinstance(record, ValidationRecord):
            print(format_validation(record), file=self._stream, flush=True)
        elif record.step % self._every == 0 or record.step in (1, record.total_steps):
            print(format_step(record), file=self._stream, flush=True)


class JsonlSink:
    """Appends every record to a JSON-lines file; records after `resume_step` are dropped first."""

    def __init__(self, path: Path, resume_step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_metrics(path) if line["step"] <= resume_step] if resume_step else []
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        temporary.replace(path)
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, record: Record) -> None:
        """Append the record."""
        kind = "validation" if isinstance(record, ValidationRecord) else "step"
        values = {key: to_json_number(value) for key, value in dataclasses.asdict(record).items()}
        self._file.write(json.dumps({"kind": kind, **values}) + "\n")


def to_json_number(value: Any) -> Any:
    """Return the value, with NaN and infinities as text: JSON has none."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a `metrics.jsonl`; a last line that was cut short by a crash is passed over."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                return
            yield record


def format_step(record: StepRecord) -> str:
    """Return the progress line of a step."""
    remaining_s = (record.total_steps - record.step) * record.step_time_s
    norm = "" if record.grad_norm is None else f"  grad-norm {record.grad_norm:.3g}"
    overflow = "  OVERFLOW (step skipped)" if record.overflow else ""
    return (
        f"step {record.step:>{len(str(record.total_steps))}}/{record.total_steps}  loss {record.loss:.4f}  "
        f"lr {record.learning_rate:.3e}{norm}  {format_count(record.tokens_per_s)} tokens/s  "
        f"{format_count(record.tokens)} tokens  ETA {format_duration(remaining_s)}{overflow}"
    )


def format_validation(record: ValidationRecord) -> str:
    """Return the line of a validation set."""
    perplexity = math.exp(min(record.loss, 700.0))
    return f"validation at step {record.step}: {record.name}  loss {record.loss:.4f}  perplexity {perplexity:.2f}"


def format_duration(seconds: float) -> str:
    """Return h:mm:ss, with days in front where there are any."""
    days, rest = divmod(round(seconds), 86400)
    hours, rest = divmod(rest, 3600)
    text = f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
    return f"{days}d {text}" if days else text
