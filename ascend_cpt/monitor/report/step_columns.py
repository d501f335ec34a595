"""Parses the step records of `metrics.jsonl` into columns, a block of lines at a time."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from ascend_cpt.errors import DataError
from ascend_cpt.monitor.history import METRICS_NAME
from ascend_cpt.monitor.report.curves import Floats

# Columns of the step records. Optional ones may be None, or missing from older versions' records.
NEEDED = ("step", "total_steps", "tokens", "loss", "learning_rate", "tokens_per_s", "step_time_s")
OPTIONAL = ("grad_norm", "data_wait_s", "mfu", "tflops_per_device")
NAMES = (*NEEDED, *OPTIONAL)
STEP_HEAD = b'{"kind": "step", '
"""How a step record begins when `JsonlSink` wrote it."""


_OTHER_HEAD = re.compile(rb'\{"kind": "(?!step")\w+", ')
_FIELD = re.compile(rb', "(\w+)": [-0-9n][^",{}\[\]]*(?=,)')
_NOT_SKIPPED = b', "skipped": ""'
_SKIPPED = re.compile(rb'(?m)^\{"kind": "step", "step": (\d+),.*"skipped": ("(?:[^"\\\n]|\\.)+")')


class StepColumns:
    """The columns of all step records so far."""

    def __init__(self) -> None:
        self._blocks: list[dict[str, Floats]] = []
        self.skipped: dict[int, str] = {}
        """Step → why it was skipped."""

    def join(self) -> dict[str, Floats]:
        """Return the columns, without values if there are no steps yet."""
        if len(self._blocks) != 1:
            nothing = np.empty(0)
            joined = {name: np.concatenate([nothing, *(block[name] for block in self._blocks)]) for name in NAMES}
            self._blocks = [joined]
        return self._blocks[0]

    def add_lines(self, lines: bytes) -> tuple[int, list[tuple[int, bytes]]] | None:
        """Add the step records among whole lines at once.

        Return the number of lines, and the other records with their line numbers from 0.

        Return None, without adding anything, if a line is not as `JsonlSink` writes it, or if a step record has other
        keys than the first one or a value that is not a number, such as a loss of "nan". The caller then reads each
        line by itself, which takes several times as long.
        """
        characters = np.frombuffer(lines, np.uint8)
        ends = np.flatnonzero(characters == ord("\n"))
        starts = np.concatenate([[0], ends[:-1] + 1])
        is_step = ends - starts > len(STEP_HEAD)
        is_step[is_step] = _are_at(lines, STEP_HEAD, starts[is_step])
        others = [(int(i), lines[starts[i] : ends[i]]) for i in np.flatnonzero(~is_step)]
        if not all(_OTHER_HEAD.match(line) for _, line in others):
            return None
        num_steps = len(ends) - len(others)
        if num_steps:
            commas = np.flatnonzero(characters == ord(","))
            found = _parse_steps(lines, commas, starts[is_step], ends[is_step])
            if found is None:
                return None
            columns = {name: found[name] if name in found else np.full(num_steps, math.nan) for name in NAMES}
            _check_positive(columns)
            for reason in [] if _are_none_skipped(lines, commas, ends[is_step]) else _SKIPPED.finditer(lines):
                self.skipped[int(reason[1])] = str(orjson.loads(reason[2]))
            self._blocks.append(columns)
        return len(ends), others

    def add_records(self, records: Sequence[dict[str, Any]]) -> None:
        """Add parsed step records, which `check_names` has checked.

        Raises:
            DataError: a value is not a number, or not a positive one where only that makes sense.
        """
        if not records:
            return
        columns = {name: _to_floats(record.get(name) for record in records) for name in NAMES}
        _check_positive(columns)
        for step, record in zip(columns["step"], records, strict=True):
            if record.get("skipped"):
                self.skipped[int(step)] = str(record["skipped"])
        self._blocks.append(columns)


def _are_none_skipped(lines: bytes, commas: NDArray[np.int64], ends: NDArray[np.int64]) -> bool:
    """Return whether all step records certainly say that their step was not skipped.

    In all records, as many commas as in the first one follow the one before `skipped`.
    """
    last = np.searchsorted(commas, ends)
    place = lines.rfind(_NOT_SKIPPED, 0, int(ends[0]))
    num_after = int(last[0] - np.searchsorted(commas, place))
    return place >= 0 and bool(_are_at(lines, _NOT_SKIPPED, commas[np.maximum(last - num_after, 0)]).all())


def _parse_steps(
    lines: bytes, commas: NDArray[np.int64], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> dict[str, Floats] | None:
    """Return the columns of the step records in the lines between `starts` and `ends`.

    All lines are parsed at once, from the positions of the commas, and only the needed numbers. None if a record has
    other keys than the first one, if it lacks a needed value, or if a value is not a number.
    """
    import pyarrow as pa

    keys = _list_keys(lines, int(starts[0]))
    places = [i for i, key in enumerate(keys) if key[3:-3].decode() in NAMES]
    names = [keys[i][3:-3].decode() for i in places]
    if not set(NEEDED) <= set(names):
        return None
    characters = np.frombuffer(lines, np.uint8)
    # The comma before the first key of each line. The commas in texts come later than the numbers.
    first = np.searchsorted(commas, starts)
    if first[-1] + len(keys) >= len(commas) or not (characters[ends - 1] == ord("}")).all():
        return None
    bounds = commas[first[:, None] + np.arange(len(keys) + 1)]
    starts = bounds[:, places] + np.array([len(keys[i]) for i in places])
    stops = bounds[:, [i + 1 for i in places]]
    # The first and the last eight bytes of each key are compared: keys of the same length that differ only in between
    # do not occur.
    words = _view_words(lines)
    heads, tails = (
        np.array([int.from_bytes(part, "little") for part in parts], np.uint64)
        for parts in zip(*((keys[i][:8], keys[i][-8:]) for i in places), strict=True)
    )
    if not ((bounds[:, -1] < ends).all() and (words[bounds[:, places]] == heads).all()):
        return None
    if not (words[starts - 8] == tails).all():
        return None
    # Texts that alternate: a number, what is between it and the next one, the next number, and so on.
    offsets = np.stack([starts, stops], axis=2).astype(np.int32).ravel()
    if not (np.diff(offsets) >= 0).all():
        return None
    texts = pa.Array.from_buffers(pa.string(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(lines)])
    numbers = np.full(starts.size, math.nan)
    given = np.flatnonzero((characters[starts] != ord("n")).ravel())  # others are null
    try:
        numbers[given] = texts.take(pa.array(given * 2)).cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        return None
    table = numbers.reshape(starts.shape)
    return {name: np.ascontiguousarray(table[:, i]) for i, name in enumerate(names)}


def _are_at(lines: bytes, text: bytes, places: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return at which places a text of at least 8 bytes is. Eight bytes are compared at a time."""
    found = np.ones(len(places), bool)
    if not len(places):
        return found
    words = _view_words(lines)
    for offset in sorted({*range(0, len(text) - 7, 8), len(text) - 8}):
        found &= words[places + offset] == int.from_bytes(text[offset : offset + 8], "little")
    return found


def _view_words(lines: bytes) -> NDArray[np.uint64]:
    """Return the eight bytes at every place, as numbers."""
    return np.ndarray((len(lines) - 7,), "<u8", lines, strides=(1,))


def _list_keys(lines: bytes, start: int) -> list[bytes]:
    """Return `, "key": ` of each number in the step record at `start`, up to the first value of another type."""
    keys: list[bytes] = []
    place = start + len(STEP_HEAD) - 2
    while (match := _FIELD.match(lines, place)) is not None:
        keys.append(b', "' + match[1] + b'": ')
        place = match.end()
    return keys


def parse_object(line: bytes) -> dict[str, Any]:
    """Return a line's JSON object.

    Raises:
        ValueError: the line is not one, or has no `kind`.
    """
    record = orjson.loads(line)
    if not isinstance(record, dict) or "kind" not in record:
        raise ValueError("not a record")
    return record


def check_names(record: dict[str, Any]) -> dict[str, Any]:
    """Return a step record.

    Raises:
        KeyError: it lacks a value.
    """
    for name in NEEDED:
        record[name]
    return record


def _check_positive(columns: dict[str, Floats]) -> None:
    for name in ("step", "total_steps", "tokens"):
        if not (columns[name] > 0).all() or not np.isfinite(columns[name]).all():
            raise DataError(
                f"{METRICS_NAME}: a step has a {name} that is not a positive number; correct or remove its line"
            )


def _to_floats(column: Iterable[Any]) -> Floats:
    """Return a column as float64. Strings such as `nan` and `inf` are parsed, and None becomes NaN."""
    try:
        return np.array([math.nan if value is None else float(value) for value in column])
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(
            f"{METRICS_NAME}: a step has a value that is not a number ({error}); correct or remove its line"
        ) from None
