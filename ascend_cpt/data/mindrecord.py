"""MindRecord files. The one module of this room that imports mindspore, and only when a file is begun."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ascend_cpt.errors import DataError

COLUMN = "input_ids"
INDEX_SUFFIX = ".db"

# The writer is no faster with more; always the same number makes the file's bytes independent of how rows arrive.
_BATCH_ROWS = 256
_ERROR_MARK = "[ERROR]"


class MindRecordWriter:
    """Writes rows of int32 to one MindRecord file under its final name, which the file also stores inside.

    A MindRecord file cannot be renamed, but it can be moved: write it in a temporary folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: Any = None
        self._pending: list[npt.NDArray[np.int32]] = []
        self._num_pending = 0
        self.num_rows = 0

    def write(self, rows: npt.NDArray[np.int32]) -> None:
        """Add rows of shape [rows, row length]."""
        # The writer leaves out rows of another type with no more than a log line.
        assert rows.dtype == np.int32 and rows.ndim == 2
        self._pending.append(rows)
        self._num_pending += len(rows)
        if self._num_pending >= _BATCH_ROWS:
            self._flush(self._num_pending - self._num_pending % _BATCH_ROWS)

    def close(self) -> None:
        """Finish the file and check that it holds every row.

        Raises:
            DataError: the file system is full or does not take the file.
        """
        self._flush(self._num_pending)
        try:
            self._open().commit()
        except Exception as error:
            raise DataError(f"{self._path}: MindRecord cannot be written: {_describe(error)}") from error
        for path in (self._path, self._path.with_name(self._path.name + INDEX_SUFFIX)):
            path.chmod(0o666 & ~_read_umask())  # the library makes them readable by their owner only
        written = count_rows(self._path)
        if written != self.num_rows:
            raise DataError(f"{self._path}: MindRecord kept {written} of {self.num_rows} rows; is the disk full?")

    def _open(self) -> Any:
        """The library's writer. Its import takes a second, in which the first documents are read and encoded."""
        if self._writer is None:
            os.environ.setdefault("GLOG_v", "3")  # mindspore logs warnings for every file otherwise
            from mindspore.mindrecord import FileWriter

            self._writer = FileWriter(str(self._path), shard_num=1, overwrite=True)
            self._writer.add_schema({COLUMN: {"type": "int32", "shape": [-1]}}, "packed token ids")
        return self._writer

    def _flush(self, num_rows: int) -> None:
        if not num_rows:
            return
        rows = np.concatenate(self._pending)
        self._pending, self._num_pending = [rows[num_rows:]], len(rows) - num_rows
        for begin in range(0, num_rows, _BATCH_ROWS):
            batch = rows[begin : min(begin + _BATCH_ROWS, num_rows)]
            try:
                self._open().write_raw_data([{COLUMN: row} for row in batch])
            except Exception as error:
                raise DataError(f"{self._path}: MindRecord cannot be written: {_describe(error)}") from error
            self.num_rows += len(batch)


def count_rows(path: Path) -> int:
    """Number of rows that the index of a MindRecord file lists."""
    with sqlite3.connect(f"file:{path}{INDEX_SUFFIX}?mode=ro", uri=True) as connection:
        return int(connection.execute("SELECT COUNT(*) FROM INDEXES").fetchone()[0])


def _read_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def _describe(error: Exception) -> str:
    """The line of the library's message that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line.removeprefix(_ERROR_MARK).strip() for line in lines if line.startswith(_ERROR_MARK)]
    return next(iter(told or lines), type(error).__name__)


def iter_rows(path: Path, batch_rows: int = 1024) -> Iterator[npt.NDArray[np.int32]]:
    """Yield the rows of a MindRecord file in order, as arrays of shape [rows, row length].

    Raises:
        DataError: the file cannot be read.
    """
    os.environ.setdefault("GLOG_v", "3")
    from mindspore.dataset import MindDataset

    if not count_rows(path):
        return  # the library has no batches of nothing
    try:
        dataset = MindDataset(str(path), columns_list=[COLUMN], shuffle=False).batch(batch_rows)
        for (rows,) in dataset.create_tuple_iterator(num_epochs=1, output_numpy=True):
            yield rows
    except RuntimeError as error:
        raise DataError(f"{path}: MindRecord cannot be read: {_describe(error)}") from error
