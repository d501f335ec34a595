"""Megatron's indexed datasets (.idx with its .bin). They hold ids, not text: `batches.py` reads them."""

from __future__ import annotations

from collections.abc import Iterator

from ascend_cpt.data.packed.megatron_indexed import INDEX_SUFFIX, IndexedReader
from ascend_cpt.data.readers.formats.base import Extent, ReadOptions, Record
from ascend_cpt.data.readers.input_files import InputFile

_EXTENT_DOCUMENTS = 4096


def measure(file: InputFile) -> list[Extent]:
    """See `readers.Reader`."""
    reader = IndexedReader(file.path.removesuffix(INDEX_SUFFIX))
    parts = [reader.lengths[k : k + _EXTENT_DOCUMENTS] for k in range(0, len(reader), _EXTENT_DOCUMENTS)]
    return [Extent(num_positions=len(part), weight=max(int(part.sum()), len(part))) for part in parts]


def read(file: InputFile, start: int, options: ReadOptions) -> Iterator[Record]:
    """See `readers.Reader`."""
    raise AssertionError("ids are not read as text")


def must_skim(file: InputFile) -> bool:
    """See `readers.Reader`."""
    return False
