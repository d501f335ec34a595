"""Readers of input files: one module per format, called `{format}_file`.

A reader is a module with the functions of `Reader`. Positions are byte offsets for text formats and row numbers for
parquet and arrow. To add a format, add such a module here and its file extensions to `input_files.FORMATS`.
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
    """The interface of a reader module."""

    def measure(self, file: InputFile, options: ReadOptions) -> Sequence[Extent]:
        """Return consecutive file extents with position counts and weights, for splitting the file evenly.

        Raises:
            DataError: the file does not have the format.
        """

    def read(self, file: InputFile, start: int, options: ReadOptions) -> Iterator[Record]:
        """Yield the records at position `start` or later, in order, without loading the whole file.

        Reading [a, b) and [b, c) must give exactly the records in [a, c) for any b: a record belongs to the part that
        contains its start position. The caller stops at the first record after its part.
        """

    def must_skim(self, file: InputFile) -> bool:
        """Return whether reaching a position requires reading the file from its start."""


def load_reader(format_name: str) -> Reader:
    """Return the reader for a format in `input_files.FORMATS`, importing the libraries it needs."""
    assert format_name in FORMATS.values()
    module = _SHARED_MODULES.get(format_name, format_name)
    return cast(Reader, importlib.import_module(f"{__name__}.{module}_file"))
