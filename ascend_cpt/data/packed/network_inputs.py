"""Converts packed rows to network inputs: input ids, labels and, for attention within documents, boundaries.

The end-of-document token is the last token of its document. A document that continues in the next row is treated as a
new document there. Labels do not depend on boundaries: an end-of-document token's label is the first token of the next
document.

MindFormers supports two representations of the boundaries:

- a dense mask of seq_length² bytes per row, used by attention on the CPU, where rows are short.
- the end positions of the documents (`actual_seq_len`), used by flash attention on Ascend with a constant mask of
  2048² bytes for any row length.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]

IGNORE_LABEL = -100  # MindFormers' ignore_token_id
ACROSS, WITHIN = "across", "within"
DOCUMENT_ATTENTION = (ACROSS, WITHIN)
BOUNDARIES = ("none", "mask", "ends")
# The list of ends has a fixed length, and flash attention processes all entries.
MAX_DOCUMENTS_PER_MICRO_BATCH = 1024

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RowFormat:
    """Conversion of packed rows to network inputs of `seq_length` tokens."""

    seq_length: int
    pad_id: int
    eod_id: int
    boundaries: str = "none"
    """`none`: attention across documents; `mask` or `ends`: within documents, with this representation."""
    micro_batch_size: int = 1
    """Rows per forward pass of a rank."""

    def __post_init__(self) -> None:
        assert self.boundaries in BOUNDARIES

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> RowFormat:
        """Create the format from the output of `to_record`."""
        values = dict(record)
        return cls(boundaries=values.pop("borders"), **values)

    def to_record(self) -> dict[str, Any]:
        """Return the format as plain values."""
        # Earlier versions stored the key `borders` in resolved.yaml files.
        return {"borders" if name == "boundaries" else name: value for name, value in asdict(self).items()}

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the inputs, which are arguments of the network."""
        optional = {"none": (), "mask": ("position_ids", "attention_mask"), "ends": ("actual_seq_len",)}
        return ("input_ids", "labels", *optional[self.boundaries])

    @property
    def ranks(self) -> tuple[int, ...]:
        """Number of dimensions of each input in a batch."""
        return tuple(4 if name == "attention_mask" else 2 for name in self.columns)

    @property
    def num_ends(self) -> int:
        """Length of the list of ends per row."""
        return min(self.seq_length, max(1, MAX_DOCUMENTS_PER_MICRO_BATCH // self.micro_batch_size))

    def make(self, row: Ids, place: int) -> tuple[npt.NDArray[Any], ...]:
        """Return the inputs of a packed row, in the order of `columns`.

        Args:
            row: int32 of shape (n + 1,) with n up to seq_length. A shorter row is padded; padding has no loss.
            place: Index of the row in the rank's batch.
        """
        inputs, labels = split_row(row, self.pad_id)
        missing = self.seq_length - len(inputs)
        assert missing >= 0, "rows are not longer than seq_length + 1"
        if missing:
            inputs = np.pad(inputs, (0, missing), constant_values=self.pad_id)
            labels = np.pad(labels, (0, missing), constant_values=IGNORE_LABEL)
        if self.boundaries == "none":
            return inputs, labels
        ends = find_ends(inputs, self.eod_id)
        if self.boundaries == "mask":
            return inputs, labels, count_positions(ends), make_mask(ends)
        # Flash attention concatenates the rows of a micro batch.
        offset = place % self.micro_batch_size * self.seq_length
        return inputs, labels, list_ends(ends, self.num_ends) + np.int32(offset)


def split_row(row: Ids, pad_id: int) -> tuple[Ids, Ids]:
    """Return the input ids and the labels of a packed row, both int32 of shape (len(row) - 1,).

    Labels are the ids shifted by one. The loss ignores padding (trailing `pad_id`).
    """
    labels = row[1:].copy()
    is_real = labels != pad_id
    num_real = len(labels) - int(np.argmax(is_real[::-1])) if is_real.any() else 0
    labels[num_real:] = IGNORE_LABEL
    return row[:-1], labels


def find_ends(inputs: Ids, eod_id: int) -> Ids:
    """Return the end (exclusive) of each document in a row. The last end is the row length."""
    ends = (np.flatnonzero(inputs == eod_id) + 1).astype(np.int32)
    return ends if ends.size and ends[-1] == len(inputs) else np.append(ends, np.int32(len(inputs)))


def count_positions(ends: Ids) -> Ids:
    """Return the position of each token within its document, int32 of shape (seq_length,)."""
    starts = np.concatenate((ends[:1] * 0, ends[:-1]))
    positions: Ids = np.arange(ends[-1], dtype=np.int32) - np.repeat(starts, ends - starts)
    return positions


def make_mask(ends: Ids) -> npt.NDArray[np.uint8]:
    """Return 1 where a query (row) must not attend to a key (column): uint8 of shape (1, seq_length, seq_length)."""
    document = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
    may_attend = np.tril(document[:, None] == document[None, :])
    return (~may_attend).astype(np.uint8)[None]


def list_ends(ends: Ids, num_ends: int) -> Ids:
    """Return the ends as a list of length `num_ends`, padded with empty documents.

    If there are more documents, merge the last ones and log a warning.
    """
    if len(ends) > num_ends:
        logger.warning(
            "a row has %d documents; attention is within documents for the first %d and across the remaining ones",
            len(ends),
            num_ends - 1,
        )
        ends = np.append(ends[: num_ends - 1], ends[-1:])
    return np.pad(ends, (0, num_ends - len(ends)), constant_values=ends[-1])
