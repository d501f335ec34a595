"""Checks and counts the rows of a MindRecord file that another program wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ascend_cpt.data.packed.mindrecord_writer import COLUMN
from ascend_cpt.data.packed.token_stream import count_entries, iter_columns, read_layout
from ascend_cpt.data.tokenizing.info import TokenizerInfo
from ascend_cpt.errors import DataError

Ids = npt.NDArray[np.int32]

LABELS, MASK = "labels", "attention_mask"
_INTEGERS = ("int32", "int64")
_BLOCK_TOKENS = 1 << 20
_PACK = "pack the text with tools/preprocess_data.py"


@dataclass(frozen=True, kw_only=True)
class RowCounts:
    """Counts of what a file's rows contain."""

    row_tokens: int
    """Ids in every row; 0 without rows."""
    num_rows: int
    num_padded: int
    """Rows that end in padding."""
    num_ends: int
    """End-of-document tokens."""
    tail_tokens: int
    """Tokens without padding in the last row, if it is the only padded one; otherwise 0."""


def check_vocabulary(ids: npt.NDArray[np.integer], tokenizer: TokenizerInfo, path: Path) -> None:
    """Raise DataError for ids outside the tokenizer's vocabulary."""
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < tokenizer.vocab_size:
        wrong = int(ids.max()) if int(ids.max()) >= tokenizer.vocab_size else int(ids.min())
        raise DataError(
            f"{path}: has the id {wrong}, but the tokenizer {tokenizer.name} has {tokenizer.vocab_size} entries; give "
            "the tokenizer that the dataset was made with"
        )


def count_rows(
    path: Path, tokenizer: TokenizerInfo, *, ignore_labels: bool, on_tokens: Callable[[int], None]
) -> RowCounts:
    """Check the rows of a MindRecord file and count what they contain.

    Args:
        path: The file.
        tokenizer: The tokenizer, with the dataset's padding id.
        ignore_labels: Do not check the label column.
        on_tokens: Called with the number of ids checked since the last call.

    Raises:
        DataError: rows of different lengths, ids outside the vocabulary, labels that are not the next
            tokens, or padding that is not at the end of rows.
    """
    wanted = [COLUMN, MASK] if ignore_labels else [COLUMN, MASK, LABELS]
    arrays = read_layout(path).arrays
    columns = [name for name in wanted if arrays.get(name) in _INTEGERS]
    row_tokens = num_rows = num_padded = num_ends = tail_tokens = 0
    for block in _iter_blocks(path, columns):
        ids = block[COLUMN]
        check_vocabulary(ids, tokenizer, path)
        row_tokens, num_rows = ids.shape[1], num_rows + len(ids)
        is_real = _find_real(ids, tokenizer.pad_id)
        if MASK in block:
            _check_mask(path, ids, block[MASK], is_real, tokenizer.pad_id)
        if LABELS in block:
            _check_labels(path, ids, block[LABELS], is_real)
        lengths = is_real.sum(1)
        num_padded += int((lengths < row_tokens).sum())
        num_ends += int((ids[is_real] == tokenizer.eod_id).sum())
        tail_tokens = int(lengths[-1]) if lengths[-1] < row_tokens else 0
        on_tokens(ids.size)
    return RowCounts(
        row_tokens=row_tokens,
        num_rows=num_rows,
        num_padded=num_padded,
        num_ends=num_ends,
        tail_tokens=tail_tokens if num_padded == 1 else 0,
    )


def check_file(path: Path) -> None:
    """Raise DataError if training cannot read the file: it has no id column, was renamed, or is part of a set."""
    layout = read_layout(path)
    if path.name not in layout.names:
        raise DataError(
            f"{path}: was renamed: MindRecord stores file names, here {', '.join(layout.names[:3])}; rename it back, "
            "with its .db file"
        )
    for name in layout.names:
        if not path.with_name(name).is_file():
            raise DataError(f"{path}: one of {len(layout.names)} files, but {name} is missing; copy it here")
    if layout.arrays.get(COLUMN) not in _INTEGERS:
        columns = ", ".join(f"{name} ({kind})" for name, kind in layout.arrays.items())
        raise DataError(f"{path}: has no column {COLUMN} of int32 or int64, only {columns}; {_PACK}")


def count_all_rows(paths: tuple[Path, ...]) -> int:
    """Return the number of rows in MindRecord files, read from their indexes."""
    return sum(map(count_entries, paths))


def _iter_blocks(path: Path, columns: list[str]) -> Iterator[dict[str, Ids]]:
    """Yield the columns for blocks of rows, each of shape [num_rows, row_tokens]."""
    rows = iter_columns(path, columns)
    first = next(rows, None)
    if first is None:
        return
    length = first[COLUMN].size
    step = max(1, _BLOCK_TOKENS // max(1, length))
    block, number = [first, *islice(rows, step - 1)], 0
    while block:
        for row in block:
            for name in columns:
                if row[name].size != length or not length:
                    raise DataError(
                        f"{path}: row {number} has {row[name].size} values in the column {name}, but row 0 has "
                        f"{length} ids; training needs rows of one length: {_PACK}"
                    )
            number += 1
        yield {name: np.stack([row[name] for row in block]) for name in columns}
        block = list(islice(rows, step))


def _find_real(ids: Ids, pad_id: int) -> npt.NDArray[np.bool_]:
    """Return a mask, shaped like `ids`, of the ids before the padding at the end of each row."""
    after = np.logical_or.accumulate((ids != pad_id)[:, ::-1], axis=1)
    return after[:, ::-1]


def _check_mask(path: Path, ids: Ids, mask: Ids, is_real: npt.NDArray[np.bool_], pad_id: int) -> None:
    """Check that an attention mask hides exactly the padding."""
    if (hidden := is_real & (mask == 0)).any():
        others = np.unique(ids[hidden])
        advice = (
            f"it is padded with id {others[0]}: add --pad-id {others[0]}"
            if len(others) == 1
            else f"training masks no token before the padding: {_PACK}"
        )
        raise DataError(f"{path}: its {MASK} hides tokens that are not the padding token {pad_id}; {advice}")


def _check_labels(path: Path, ids: Ids, labels: Ids, is_real: npt.NDArray[np.bool_]) -> None:
    """Check that labels are the ids, or the ids shifted by one, since training makes its labels from the ids."""
    counts = is_real & (labels >= 0)
    is_shifted = ((labels[:, :-1] == ids[:, 1:]) | ~(counts[:, :-1] & is_real[:, 1:])).all()
    if not (is_shifted or ((labels == ids) | ~counts).all()):
        raise DataError(
            f"{path}: its {LABELS} are neither its {COLUMN} nor the next tokens, but training predicts the next token; "
            f"{_PACK}, or add --ignore-labels"
        )
    shown = is_real.copy()
    # The last token before the padding or the end of the row may have no label.
    shown[:, :-1] &= is_real[:, 1:]
    shown[:, -1] = False
    # If the labels equal the ids, the first token has no label.
    shown[:, 0] = False
    if (masked := int((shown & (labels < 0)).sum())) > 0:
        raise DataError(
            f"{path}: its {LABELS} leave at least {masked} tokens out of the loss, as for fine-tuning on answers, but "
            "training counts every token; to train on all of them, add --ignore-labels"
        )
