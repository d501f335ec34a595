"""Readers of input files: one small module per format, found by the format's name.

A reader is a module with three functions (`Reader`). Positions are what the format can start at: bytes for text, rows
for parquet and arrow. To add a format, write such a module, enter it here and its endings in `input_files.FORMATS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Protocol, cast

from ascend_cpt.data.readers.formats.base import Extent, ReadOptions, Record
from ascend_cpt.data.readers.input_files import FORMATS, InputFile

__all__ = ["Extent", "ReadOptions", "Reader", "Record", "load_reader"]


_SHARED_MODULES = {"tsv": "csv"}


class Reader(Protocol):
    """What a reader module offers."""

    def measure(self, file: InputFile) -> Sequence[Extent]:
        """The file's stretches in order, each with its positions and its weight, for cutting it into equal parts.

        Raises:
            DataError: the file is not of the format.
        """

    def read(self, file: InputFile, start: int, options: ReadOptions) -> Iterator[Record]:
        """Yield the records whose position is `start` or later, in order, without holding the whole file in memory.

        Reading [a, b) and [b, c) gives exactly the records of [a, c), for any b: a record belongs to the part that its
        position, where it begins, lies in. The caller stops when it meets the first record that is not its own.
        """

    def must_skim(self, file: InputFile) -> bool:
        """Whether a position is only reached by going through all of the file before it."""


def load_reader(format_name: str) -> Reader:
    """Return the reader of a format of `input_files.FORMATS`; its libraries are imported only now."""
    assert format_name in FORMATS.values()
    module = _SHARED_MODULES.get(format_name, format_name)
    return cast(Reader, importlib.import_module(f"{__name__}.{module}_file"))
