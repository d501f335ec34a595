"""A shard's output for one key: MindRecord rows or a part of an indexed dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from ascend_cpt.data.packed import megatron_indexed as indexed
from ascend_cpt.data.packed.checksum import checksum_file
from ascend_cpt.data.packed.manifest import Shard
from ascend_cpt.data.packed.mindrecord import MindRecordWriter
from ascend_cpt.data.packed.mindrecord_writer import INDEX_SUFFIX
from ascend_cpt.data.packed.packing import RowLayout, add_special_tokens, make_packer
from ascend_cpt.data.tokenizing.base import Encoded

MINDRECORD = "mindrecord"
MMAP = "mmap"


class Output(Protocol):
    """Writes documents to a shard's files."""

    num_tokens: int
    """Tokens added, including EOD and BOS."""

    def add(self, documents: Encoded) -> None: ...

    def close(self, num_documents: int, text_bytes: int) -> Shard: ...


def open_output(output_format: str, path: Path, layout: RowLayout, packing: str, vocab_size: int) -> Output:
    """Open the data file `path` for writing."""
    return MmapOutput(path, layout, vocab_size) if output_format == MMAP else MindRecordOutput(path, layout, packing)


class MindRecordOutput:
    """Packs documents into rows and writes them to a MindRecord file."""

    def __init__(self, path: Path, layout: RowLayout, packing: str) -> None:
        self.num_tokens = 0
        self._path = path
        self._row_tokens = layout.row_tokens
        self._packer = make_packer(packing, layout)
        self._writer = MindRecordWriter(path)

    def add(self, documents: Encoded) -> None:
        for rows in self._packer.add(documents):
            self._writer.write(rows)
        self.num_tokens = self._packer.num_tokens

    def close(self, num_documents: int, text_bytes: int) -> Shard:
        packer = self._packer
        for rows in packer.finish():
            self._writer.write(rows)
        self._writer.close()
        num_tokens = packer.num_tokens - packer.dropped_tokens
        num_written = self._writer.num_rows * self._row_tokens
        assert num_written == num_tokens + packer.padding_tokens, "number of tokens does not match"
        return make_shard(
            self._path,
            self._path.with_name(self._path.name + INDEX_SUFFIX),
            num_rows=self._writer.num_rows,
            num_tokens=num_tokens,
            num_documents=num_documents,
            text_bytes=text_bytes,
            tail_tokens=packer.tail_tokens,
            dropped_tokens=packer.dropped_tokens,
            num_cut_documents=packer.num_cut_documents,
        )


class MmapOutput:
    """Writes unpacked documents to a part of an indexed dataset."""

    def __init__(self, path: Path, layout: RowLayout, vocab_size: int) -> None:
        self.num_tokens = 0
        self._prefix = path.with_suffix("")
        self._layout = layout
        self._dtype = indexed.choose_dtype(vocab_size)
        self._writer = indexed.IndexedWriter(self._prefix, self._dtype)

    def add(self, documents: Encoded) -> None:
        documents = add_special_tokens(documents, self._layout)
        assert not documents.ids.size or documents.ids.max() <= np.iinfo(self._dtype).max
        self._writer.write(documents)
        self.num_tokens += documents.ids.size

    def close(self, num_documents: int, text_bytes: int) -> Shard:
        self._writer.close()
        part = indexed.IndexedReader(self._prefix)
        assert len(part) == num_documents and int(part.lengths.sum(dtype=np.int64)) == self.num_tokens
        return make_shard(
            part.data_path,
            part.index_path,
            num_rows=num_documents,
            num_tokens=self.num_tokens,
            num_documents=num_documents,
            text_bytes=text_bytes,
        )


def make_shard(path: Path, index_path: Path, **counts: int) -> Shard:
    """Describe a shard's files."""
    return Shard(
        file=path.name,
        size_bytes=path.stat().st_size,
        sha256=checksum_file(path),
        index_file=index_path.name,
        index_size_bytes=index_path.stat().st_size,
        index_sha256=checksum_file(index_path),
        **counts,
    )
