"""Compares an extended tokenizer with the old one on texts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ascend_cpt.data.tokenizing.base import Engine
from ascend_cpt.data.tokenizing.growth.byte_level import in_batches


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Sizes of texts in both tokenizers. BOS and EOD tokens are not counted."""

    num_documents: int
    num_bytes: int
    """UTF-8 bytes."""
    num_old_tokens: int
    num_new_tokens: int
    num_unchanged: int
    """Documents with the same ids in both."""
    num_used: int
    """New ids that occur."""

    @property
    def old_bytes_per_token(self) -> float:
        return self.num_bytes / max(self.num_old_tokens, 1)

    @property
    def new_bytes_per_token(self) -> float:
        return self.num_bytes / max(self.num_new_tokens, 1)

    @property
    def unchanged_share(self) -> float:
        return self.num_unchanged / max(self.num_documents, 1)

    def to_record(self) -> dict[str, Any]:
        """Return the numbers for a JSON file."""
        return asdict(self) | {
            "old_bytes_per_token": round(self.old_bytes_per_token, 4),
            "new_bytes_per_token": round(self.new_bytes_per_token, 4),
            "unchanged_share": round(self.unchanged_share, 4),
        }


def compare_tokenizers(old: Engine, new: Engine, first_id: int, texts: Iterable[str]) -> Comparison:
    """Encode texts with both tokenizers. New ids are those from `first_id` on."""
    num_documents = num_bytes = num_old = num_new = num_unchanged = 0
    used: set[int] = set()
    for batch in in_batches(texts):
        before, after = old.encode_batch(batch), new.encode_batch(batch)
        for k, text in enumerate(batch):
            ids = after.ids[after.offsets[k] : after.offsets[k + 1]]
            num_unchanged += np.array_equal(before.ids[before.offsets[k] : before.offsets[k + 1]], ids)
            num_bytes += len(text.encode("utf-8"))
        num_documents += len(batch)
        num_old += len(before.ids)
        num_new += len(after.ids)
        used.update(np.unique(after.ids[after.ids >= first_id]).tolist())
    return Comparison(
        num_documents=num_documents,
        num_bytes=num_bytes,
        num_old_tokens=num_old,
        num_new_tokens=num_new,
        num_unchanged=num_unchanged,
        num_used=len(used),
    )
