"""Packed rows as the network gets them: labels, padding, document boundaries told in two ways that mean the same."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ascend_cpt.data.packed.network_inputs import IGNORE_LABEL, RowFormat, draw_mask, find_ends, split_row

EOD, PAD = 0, 9


def make_format(boundaries: str = "none", seq_length: int = 8, micro_batch_size: int = 1) -> RowFormat:
    return RowFormat(
        seq_length=seq_length, pad_id=PAD, eod_id=EOD, boundaries=boundaries, micro_batch_size=micro_batch_size
    )


def row_of(*tokens: int) -> np.ndarray:
    return np.array(tokens, np.int32)


def test_padding_carries_no_loss() -> None:
    row = row_of(5, 6, 9, 7, 9, 9, 9)
    inputs, labels = split_row(row, pad_id=9)
    assert inputs.tolist() == [5, 6, 9, 7, 9, 9]
    assert labels.tolist() == [6, 9, 7, IGNORE_LABEL, IGNORE_LABEL, IGNORE_LABEL]
    assert split_row(row, pad_id=1)[1].tolist() == [6, 9, 7, 9, 9, 9]
    assert split_row(np.full(4, 9, dtype=np.int32), pad_id=9)[1].tolist() == [IGNORE_LABEL] * 3


def test_a_shorter_row_is_filled_up_without_loss() -> None:
    inputs, labels = make_format().make(row_of(1, 2, 3, 4), 0)
    assert inputs.tolist() == [1, 2, 3, *[PAD] * 5] and labels.tolist() == [2, 3, 4, *[IGNORE_LABEL] * 5]
    assert inputs.dtype == labels.dtype == np.int32


def test_positions_and_sight_start_anew_after_the_end_of_a_document() -> None:
    # Documents 1 2 EOD, 3 EOD and 4 5 6; the EOD still belongs to its document.
    row_format = make_format("mask")
    columns = dict(zip(row_format.columns, row_format.make(row_of(1, 2, 0, 3, 0, 4, 5, 6, 7), 0), strict=True))
    assert columns["position_ids"].tolist() == [0, 1, 2, 0, 1, 0, 1, 2]
    mask = columns["attention_mask"]
    assert mask.shape == (1, 8, 8) and mask.dtype == np.uint8
    assert mask[0, 2].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert mask[0, 3].tolist() == [1, 1, 1, 0, 1, 1, 1, 1]
    assert mask[0, 7].tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    assert columns["labels"].tolist() == [2, 0, 3, 0, 4, 5, 6, 7], "all labels stay"


def test_rows_of_a_micro_batch_are_one_for_flash_attention() -> None:
    row_format = make_format("ends", micro_batch_size=2)
    row = row_of(1, 2, 0, 3, 0, 4, 5, 6, 7)
    ends = [row_format.make(row, place)[-1].tolist() for place in range(3)]
    assert ends == [[3, 5, *[8] * 6], [11, 13, *[16] * 6], [3, 5, *[8] * 6]]


def test_a_row_that_ends_with_a_document_has_no_empty_one() -> None:
    assert find_ends(row_of(1, 0, 2, 0), EOD).tolist() == [2, 4]
    assert find_ends(row_of(1, 2), EOD).tolist() == [2]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_both_ways_tell_the_same_boundaries(tokens: list[int]) -> None:
    """What flash attention makes of the ends, causal attention in each stretch between two, is the dense mask."""
    row = row_of(*tokens, 1)
    length = len(tokens)
    ends = make_format("ends", length).make(row, 0)[-1]
    assert ends.shape == (length,) and ends[-1] == length
    may_see = np.zeros((length, length), bool)
    for start, stop in zip([0, *ends[:-1]], ends, strict=True):
        may_see[start:stop, start:stop] = np.tril(np.ones((stop - start, stop - start), bool))
    assert (draw_mask(find_ends(row[:-1], EOD))[0] == ~may_see).all()
    positions = make_format("mask", length).make(row, 0)[2]
    assert (positions == may_see.sum(1) - 1).all(), "a position counts what the token sees before it"


def test_more_documents_than_the_list_holds_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    row_format = make_format("ends", seq_length=6, micro_batch_size=512)
    assert row_format.num_ends == 2
    with caplog.at_level(logging.WARNING):
        ends = row_format.make(row_of(0, 1, 0, 1, 0, 1, 1), 0)[-1]
    assert ends.tolist() == [1, 6]
    assert "a row holds 4 documents; attention is kept within the first 1" in caplog.text


def test_a_format_survives_being_written_down() -> None:
    row_format = make_format("ends", micro_batch_size=4)
    assert RowFormat.from_record(row_format.to_record()) == row_format
    assert row_format.ranks == (2, 2, 2) and make_format("mask").ranks == (2, 2, 2, 4)
