"""Reads and writes MindRecord files. This is the only module of the package that imports mindspore."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ascend_cpt.data.packed.mindrecord_writer import COLUMN, INDEX_SUFFIX, FormatWriter
from ascend_cpt.data.packed.token_stream import check_rows
from ascend_cpt.errors import DataError

_ERROR_MARK = "[ERROR]"


class MindRecordWriter:
    """Writes int32 rows to a MindRecord file.

    The format stores the file name, so the file can be moved but not renamed. Write it to a temporary folder.

    Raises:
        DataError: the file cannot be written, or a row is too long for the format.
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
        """Append rows of shape [num_rows, row_length]."""
        try:
            self._writer.write(rows)
        except OSError as error:
            raise self._explain(error) from error

    def close(self) -> None:
        """Finish the file and check the number of rows in its index."""
        try:
            self._writer.close()
        except (OSError, sqlite3.Error) as error:
            raise self._explain(error) from error
        assert count_rows(self._path) == self.num_rows

    def _explain(self, error: Exception) -> DataError:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        return DataError(f"{self._path}: MindRecord cannot be written: {reason}")


def count_rows(path: Path) -> int:
    """Return the number of rows in a MindRecord file's index."""
    with closing(sqlite3.connect(f"file:{path}{INDEX_SUFFIX}?mode=ro", uri=True)) as connection:
        return int(connection.execute("SELECT COUNT(*) FROM INDEXES").fetchone()[0])


def iter_rows(path: Path, batch_rows: int = 1024) -> Iterator[npt.NDArray[np.int32]]:
    """Yield a MindRecord file's rows in order, as arrays of shape [num_rows, row_length].

    Raises:
        DataError: the file is damaged or cannot be read.
    """
    check_rows(path)
    os.environ.setdefault("GLOG_v", "3")  # otherwise mindspore would log warnings for every file
    from mindspore.dataset import MindDataset

    if not count_rows(path):
        return  # MindDataset fails on an empty file
    try:
        dataset = MindDataset([str(path)], columns_list=[COLUMN], shuffle=False).batch(batch_rows)
        for (rows,) in dataset.create_tuple_iterator(num_epochs=1, output_numpy=True):
            yield rows.astype(np.int32, copy=False)  # an adopted file may have int64
    except RuntimeError as error:
        raise DataError(f"{path}: MindRecord cannot be read: {_describe(error)}") from error


def _describe(error: Exception) -> str:
    """Return the line of the error message that states the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line.removeprefix(_ERROR_MARK).strip() for line in lines if line.startswith(_ERROR_MARK)]
    return next(iter(causes or lines), type(error).__name__)
