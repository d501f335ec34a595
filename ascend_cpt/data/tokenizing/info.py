"""What identifies a tokenizer in the manifest of a dataset."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TokenizerInfo:
    """The tokenizer that a dataset was packed with."""

    type: str
    """`PretrainedFromHF`, `SentencePiece` or `TikToken`."""
    name: str
    """Name of its folder or file, for people; `fingerprint` identifies it."""
    fingerprint: str
    """SHA-256 of what decides its ids, the same for the same vocabulary and rules whatever the file's layout."""
    vocab_size: int
    """Largest id + 1, added tokens included."""
    eod_id: int
    """Ends each document (unless the dataset was packed without)."""
    pad_id: int
    """Fills padded rows; never equal to `eod_id`."""
    bos_id: int | None = None
    """Starts a document, where the tokenizer has one (see `settings` whether it was added)."""
