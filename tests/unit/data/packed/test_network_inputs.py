"""Conversion of packed rows to network inputs: labels, padding, and both forms of document boundaries."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ascend_cpt.data.packed.network_inputs import IGNORE_LABEL, RowFormat, find_ends, make_mask, split_row

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


def test_a_shorter_row_is_padded_without_loss() -> None:
    inputs, labels = make_format().make(row_of(1, 2, 3, 4), 0)
    assert inputs.tolist() == [1, 2, 3, *[PAD] * 5] and labels.tolist() == [2, 3, 4, *[IGNORE_LABEL] * 5]
    assert inputs.dtype == labels.dtype == np.int32


@pytest.mark.parametrize("boundaries", ["none", "mask", "ends"])
def test_a_row_of_whole_documents_that_ends_in_padding(boundaries: str) -> None:
    """Documents 5 6 EOD and 7 EOD: the padding has no loss, and no token of a document attends to it."""
    row_format = make_format(boundaries)
    columns = dict(zip(row_format.columns, row_format.make(row_of(5, 6, 0, 7, 0, 9, 9, 9, 9), 0), strict=True))
    assert columns["input_ids"].tolist() == [5, 6, 0, 7, 0, 9, 9, 9]
    assert columns["labels"].tolist() == [6, 0, 7, 0, *[IGNORE_LABEL] * 4]
    if boundaries == "ends":
        assert columns["actual_seq_len"].tolist() == [3, 5, *[8] * 6]
    if boundaries == "mask":
        assert columns["position_ids"].tolist() == [0, 1, 2, 0, 1, 0, 1, 2]
        assert columns["attention_mask"][0, :5, 5:].all(), "1 where a query must not attend"


def test_positions_and_attention_restart_at_each_document() -> None:
    # Documents 1 2 EOD, 3 EOD and 4 5 6; the EOD is part of its document.
    row_format = make_format("mask")
    columns = dict(zip(row_format.columns, row_format.make(row_of(1, 2, 0, 3, 0, 4, 5, 6, 7), 0), strict=True))
    assert columns["position_ids"].tolist() == [0, 1, 2, 0, 1, 0, 1, 2]
    mask = columns["attention_mask"]
    assert mask.shape == (1, 8, 8) and mask.dtype == np.uint8
    assert mask[0, 2].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert mask[0, 3].tolist() == [1, 1, 1, 0, 1, 1, 1, 1]
    assert mask[0, 7].tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    assert columns["labels"].tolist() == [2, 0, 3, 0, 4, 5, 6, 7], "all labels stay"


def test_ends_are_offset_within_a_micro_batch() -> None:
    row_format = make_format("ends", micro_batch_size=2)
    row = row_of(1, 2, 0, 3, 0, 4, 5, 6, 7)
    ends = [row_format.make(row, place)[-1].tolist() for place in range(3)]
    assert ends == [[3, 5, *[8] * 6], [11, 13, *[16] * 6], [3, 5, *[8] * 6]]


def test_no_empty_document_after_a_final_eod() -> None:
    assert find_ends(row_of(1, 0, 2, 0), EOD).tolist() == [2, 4]
    assert find_ends(row_of(1, 2), EOD).tolist() == [2]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_ends_and_mask_are_equivalent(tokens: list[int]) -> None:
    """Causal attention within each document given by the ends is the same as the dense mask."""
    row = row_of(*tokens, 1)
    length = len(tokens)
    ends = make_format("ends", length).make(row, 0)[-1]
    assert ends.shape == (length,) and ends[-1] == length
    may_attend = np.zeros((length, length), bool)
    for start, stop in zip([0, *ends[:-1]], ends, strict=True):
        may_attend[start:stop, start:stop] = np.tril(np.ones((stop - start, stop - start), bool))
    assert (make_mask(find_ends(row[:-1], EOD))[0] == ~may_attend).all()
    positions = make_format("mask", length).make(row, 0)[2]
    assert (positions == may_attend.sum(1) - 1).all(), "a position counts what the token sees before it"


def test_too_many_documents_give_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    row_format = make_format("ends", seq_length=6, micro_batch_size=512)
    assert row_format.num_ends == 2
    with caplog.at_level(logging.WARNING):
        ends = row_format.make(row_of(0, 1, 0, 1, 0, 1, 1), 0)[-1]
    assert ends.tolist() == [1, 6]
    assert "a row has 4 documents; attention is within documents for the first 1" in caplog.text


def test_record_round_trip() -> None:
    row_format = make_format("ends", micro_batch_size=4)
    assert RowFormat.from_record(row_format.to_record()) == row_format
    assert row_format.ranks == (2, 2, 2) and make_format("mask").ranks == (2, 2, 2, 4)
