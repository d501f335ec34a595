"""Splits Megatron indexed datasets (.idx with .bin). `shards/batches.py` reads the token ids in them."""

from __future__ import annotations

from collections.abc import Iterator

from ascend_cpt.data.packed.megatron_indexed import INDEX_SUFFIX, IndexedReader
from ascend_cpt.data.readers.formats.base import Extent, ReadOptions, Record
from ascend_cpt.data.readers.input_files import InputFile

_EXTENT_DOCUMENTS = 4096


def measure(file: InputFile, options: ReadOptions) -> list[Extent]:
    """See `formats.Reader`."""
    reader = IndexedReader(file.path.removesuffix(INDEX_SUFFIX))
    parts = [reader.lengths[k : k + _EXTENT_DOCUMENTS] for k in range(0, len(reader), _EXTENT_DOCUMENTS)]
    return [Extent(num_positions=len(part), weight=max(int(part.sum()), len(part))) for part in parts]


def read(file: InputFile, start: int, options: ReadOptions) -> Iterator[Record]:
    """See `formats.Reader`."""
    raise AssertionError("indexed datasets have no text")


def must_skim(file: InputFile) -> bool:
    """See `formats.Reader`."""
    return False
