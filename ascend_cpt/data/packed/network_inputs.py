"""What the network is given of a packed row: input ids, labels and, where documents are kept apart, their boundaries.

A document ends with the end-of-document token, which still belongs to it: what comes next sees nothing of it. A
document that continues over rows starts again at 0 in each. All labels stay: the label of an end-of-document token is
the first token of the next document.

MindFormers' attention takes document boundaries in two ways:

- a dense mask: seq_length² bytes for every row. The CPU's attention takes it, for the short rows of a CPU.
- the ends of the documents (`actual_seq_len`): Ascend's flash attention works on one document after the other under one
  constant mask of 2048² bytes, however long the rows are.
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
# The list of ends has one length in the whole run, and flash attention goes through all of it.
MAX_DOCUMENTS_PER_MICRO_BATCH = 1024

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RowFormat:
    """How a packed row becomes the inputs of the network, of `seq_length` tokens each."""

    seq_length: int
    pad_id: int
    eod_id: int
    boundaries: str = "none"
    """`none`: attention goes across documents; `mask` or `ends`: within documents, in that form."""
    micro_batch_size: int = 1
    """Rows that the network of a rank works on at once."""

    def __post_init__(self) -> None:
        assert self.boundaries in BOUNDARIES

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> RowFormat:
        """Return the format that `to_record` wrote down."""
        values = dict(record)
        return cls(boundaries=values.pop("borders"), **values)

    def to_record(self) -> dict[str, Any]:
        """Return the format as plain values."""
        # The key is that of resolved.yaml files of earlier versions.
        return {"borders" if name == "boundaries" else name: value for name, value in asdict(self).items()}

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the inputs, as the network's arguments."""
        further = {"none": (), "mask": ("position_ids", "attention_mask"), "ends": ("actual_seq_len",)}
        return ("input_ids", "labels", *further[self.boundaries])

    @property
    def ranks(self) -> tuple[int, ...]:
        """The number of dimensions of each input in a batch."""
        return tuple(4 if name == "attention_mask" else 2 for name in self.columns)

    @property
    def num_ends(self) -> int:
        """Length of the list of ends of a row."""
        return min(self.seq_length, max(1, MAX_DOCUMENTS_PER_MICRO_BATCH // self.micro_batch_size))

    def make(self, row: Ids, place: int) -> tuple[npt.NDArray[Any], ...]:
        """Return the inputs of a packed row, in the order of `columns`.

        Args:
            row: int32 of shape (n + 1,) with n up to seq_length; a shorter row is filled up, without loss.
            place: The row's place in the batch of its rank.
        """
        inputs, labels = split_row(row, self.pad_id)
        missing = self.seq_length - len(inputs)
        assert missing >= 0, "a row is at most as long as the run's rows"
        if missing:
            inputs = np.pad(inputs, (0, missing), constant_values=self.pad_id)
            labels = np.pad(labels, (0, missing), constant_values=IGNORE_LABEL)
        if self.boundaries == "none":
            return inputs, labels
        ends = find_ends(inputs, self.eod_id)
        if self.boundaries == "mask":
            return inputs, labels, count_positions(ends), draw_mask(ends)
        # Flash attention sees the rows of a micro batch as one.
        offset = place % self.micro_batch_size * self.seq_length
        return inputs, labels, list_ends(ends, self.num_ends) + np.int32(offset)


def split_row(row: Ids, pad_id: int) -> tuple[Ids, Ids]:
    """Return the input ids and the labels of a packed row, both int32 of shape (len(row) - 1,).

    Labels are the ids one place further; where they are padding (a run of `pad_id` at the end) they carry no loss.
    """
    labels = row[1:].copy()
    is_real = labels != pad_id
    num_real = len(labels) - int(np.argmax(is_real[::-1])) if is_real.any() else 0
    labels[num_real:] = IGNORE_LABEL
    return row[:-1], labels


def find_ends(inputs: Ids, eod_id: int) -> Ids:
    """Return the place after the last token of each document in a row; the last of them is the row's length."""
    ends = (np.flatnonzero(inputs == eod_id) + 1).astype(np.int32)
    return ends if ends.size and ends[-1] == len(inputs) else np.append(ends, np.int32(len(inputs)))


def count_positions(ends: Ids) -> Ids:
    """Return the position of each token in its document, int32 of shape (seq_length,)."""
    starts = np.concatenate((ends[:1] * 0, ends[:-1]))
    positions: Ids = np.arange(ends[-1], dtype=np.int32) - np.repeat(starts, ends - starts)
    return positions


def draw_mask(ends: Ids) -> npt.NDArray[np.uint8]:
    """Return 1 where a token (row) must not see another (column): uint8 of shape (1, seq_length, seq_length)."""
    document = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
    may_see = np.tril(document[:, None] == document[None, :])
    return (~may_see).astype(np.uint8)[None]


def list_ends(ends: Ids, num_ends: int) -> Ids:
    """Return the ends in a list of `num_ends`, filled up with documents of no length.

    Where there are more documents the last ones see each other, with a warning.
    """
    if len(ends) > num_ends:
        logger.warning(
            "a row holds %d documents; attention is kept within the first %d and goes across the others",
            len(ends),
            num_ends - 1,
        )
        ends = np.append(ends[: num_ends - 1], ends[-1:])
    return np.pad(ends, (0, num_ends - len(ends)), constant_values=ends[-1])
