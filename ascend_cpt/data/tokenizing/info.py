"""The description of a tokenizer in a dataset's manifest."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TokenizerInfo:
    """The tokenizer used to pack a dataset."""

    type: str
    """`PretrainedFromHF`, `SentencePiece` or `TikToken`."""
    name: str
    """Name of its folder or file, for messages only; `fingerprint` identifies it."""
    fingerprint: str
    """SHA-256 of vocabulary and rules, independent of the formatting of the file."""
    vocab_size: int
    """Largest id + 1, added tokens included."""
    eod_id: int
    """End-of-document token."""
    pad_id: int
    """Padding token; never equal to `eod_id`."""
    bos_id: int | None = None
    """Beginning-of-document token; `settings` has whether it was added."""

    @property
    def prefix_id(self) -> int:
        """The token placed before a text that nothing precedes: `bos_id`, or `eod_id` if there is no BOS."""
        return self.eod_id if self.bos_id is None else self.bos_id
