"""The description of a shard that a worker gets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ascend_cpt.data.packed.packing import RowLayout
from ascend_cpt.data.readers.formats import ReadOptions
from ascend_cpt.data.readers.spans import Span
from ascend_cpt.data.tokenizing.base import TokenizerFile
from ascend_cpt.data.tokenizing.engine_choice import EngineChoice


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """All that a worker needs to pack a shard."""

    number: int
    run: str
    """Identifies what the run makes; results of another are not taken."""
    spans: tuple[Span, ...]
    folder: Path
    """Where the shard's files are once it is whole."""
    file_names: tuple[str, ...]
    """The data file of each key."""
    keys: tuple[str, ...]
    handler_name: str
    read_options: ReadOptions
    tokenizer: TokenizerFile
    engine: EngineChoice
    layout: RowLayout
    output_format: str
    dropped: Path | None = None
    """The file that lists the dropped documents; None when nothing is dropped."""
    drop_kinds: tuple[str, ...] = ()
    """Names of the kinds in that file."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a shard has come."""

    weight: int
    """Of its spans' weight."""
    num_documents: int
    num_tokens: int
