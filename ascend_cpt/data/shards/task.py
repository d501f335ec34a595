"""The task of a worker: one shard."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ascend_cpt.data.packed.packing import CONCAT, RowLayout
from ascend_cpt.data.readers.formats import ReadOptions
from ascend_cpt.data.readers.spans import Span
from ascend_cpt.data.tokenizing.base import TokenizerFile
from ascend_cpt.data.tokenizing.engine_choice import EngineChoice


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """All inputs needed to pack a shard."""

    number: int
    run: str
    """Hash of the identity of the dataset; results with another hash are not used."""
    spans: tuple[Span, ...]
    folder: Path
    """Folder of the files of the finished shard."""
    file_names: tuple[str, ...]
    """Name of the data file for each key."""
    keys: tuple[str, ...]
    handler_name: str
    read_options: ReadOptions
    tokenizer: TokenizerFile
    engine: EngineChoice
    layout: RowLayout
    output_format: str
    packing: str = CONCAT
    """How documents are put into rows."""
    limits_tokenizer: bool = True
    """Whether to reject texts for which the engine would need too much memory."""
    dropped: Path | None = None
    """Prefix of the files with the dropped documents, None without deduplication and filters."""
    drop_kinds: tuple[str, ...] = ()
    """Names of the kinds in these files."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Progress of a shard, or the sum over shards."""

    weight: int
    """Processed weight of its spans."""
    num_documents: int
    num_tokens: int
