"""MindRecord files: written in their format, read by MindSpore. The one module of this room that imports mindspore."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ascend_cpt.data.packed.mindrecord_writer import COLUMN, INDEX_SUFFIX, FormatWriter
from ascend_cpt.errors import DataError

_ERROR_MARK = "[ERROR]"


class MindRecordWriter:
    """Writes rows of int32 to one MindRecord file under its final name, which the file also stores inside.

    A MindRecord file cannot be renamed, but it can be moved: write it in a temporary folder.

    Raises:
        DataError: the file system is full or does not take the file; a row is too long for the format.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._writer = FormatWriter(path)
        except OSError as error:
            raise self._explain(error) from error

    @property
    def num_rows(self) -> int:
        return self._writer.num_rows

    def write(self, rows: npt.NDArray[np.int32]) -> None:
        """Add rows of shape [rows, row length]."""
        try:
            self._writer.write(rows)
        except OSError as error:
            raise self._explain(error) from error

    def close(self) -> None:
        """Finish the file and check that its index lists every row."""
        try:
            self._writer.close()
        except (OSError, sqlite3.Error) as error:
            raise self._explain(error) from error
        assert count_rows(self._path) == self.num_rows

    def _explain(self, error: Exception) -> DataError:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        return DataError(f"{self._path}: MindRecord cannot be written: {reason}")


def count_rows(path: Path) -> int:
    """Number of rows that the index of a MindRecord file lists."""
    with closing(sqlite3.connect(f"file:{path}{INDEX_SUFFIX}?mode=ro", uri=True)) as connection:
        return int(connection.execute("SELECT COUNT(*) FROM INDEXES").fetchone()[0])


def iter_rows(path: Path, batch_rows: int = 1024) -> Iterator[npt.NDArray[np.int32]]:
    """Yield the rows of a MindRecord file in order, as arrays of shape [rows, row length].

    Raises:
        DataError: the file cannot be read.
    """
    os.environ.setdefault("GLOG_v", "3")  # mindspore logs warnings for every file otherwise
    from mindspore.dataset import MindDataset

    if not count_rows(path):
        return  # the library has no batches of nothing
    try:
        dataset = MindDataset(str(path), columns_list=[COLUMN], shuffle=False).batch(batch_rows)
        for (rows,) in dataset.create_tuple_iterator(num_epochs=1, output_numpy=True):
            yield rows
    except RuntimeError as error:
        raise DataError(f"{path}: MindRecord cannot be read: {_describe(error)}") from error


def _describe(error: Exception) -> str:
    """The line of the library's message with the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line.removeprefix(_ERROR_MARK).strip() for line in lines if line.startswith(_ERROR_MARK)]
    return next(iter(told or lines), type(error).__name__)
