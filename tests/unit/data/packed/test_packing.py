"""Packing: rows contain all documents, and counts of tokens, padding and cut documents are correct."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ascend_cpt.data.packed.packing import BEST_FIT, CONCAT, DOCUMENT, Packer, RowLayout, Rows, best_fit, make_packer
from ascend_cpt.data.packed.packing.best_fit import assign_rows
from ascend_cpt.data.packed.packing.layout import strip_padding
from ascend_cpt.data.tokenizing.base import Encoded, join_encoded

EOD, BOS, PAD = 900, 901, 902
DOCUMENTS = st.lists(st.lists(st.integers(0, 99), max_size=30), max_size=20)


def pack(packing: str, layout: RowLayout, batches: list[Encoded]) -> tuple[Rows, Packer]:
    packer = make_packer(packing, layout)
    blocks = [block for batch in batches for block in packer.add(batch)] + list(packer.finish())
    return np.concatenate([np.empty((0, layout.row_tokens), np.int32), *blocks]), packer


def split(documents: list[list[int]], batch: int) -> list[Encoded]:
    return [join_encoded(documents[k : k + batch]) for k in range(0, len(documents), batch)]


@given(
    documents=DOCUMENTS,
    seq_length=st.integers(1, 40),
    batch=st.integers(1, 7),
    eod=st.booleans(),
    bos=st.booleans(),
    drop=st.booleans(),
)
def test_documents_can_be_restored_from_rows(
    documents: list[list[int]], seq_length: int, batch: int, eod: bool, bos: bool, drop: bool
) -> None:
    layout = RowLayout(
        seq_length=seq_length, pad_id=PAD, eod_id=EOD if eod else None, bos_id=BOS if bos else None, drop_tail=drop
    )
    rows, packer = pack(CONCAT, layout, split(documents, batch))
    expected = [token for document in documents for token in [BOS] * bos + document + [EOD] * eod]
    assert rows.dtype == np.int32 and rows.shape[1] == seq_length + 1
    assert packer.num_tokens == len(expected)
    dropped = packer.dropped_tokens
    assert dropped == (len(expected) % (seq_length + 1) if drop else 0)
    stream = rows.reshape(-1).tolist()
    num_real = len(expected) - dropped
    assert stream[:num_real] == expected[:num_real]
    assert stream[num_real:] == [PAD] * (len(stream) - num_real)
    assert len(stream) - num_real == packer.padding_tokens < seq_length + 1
    assert packer.tail_tokens == (0 if drop else len(expected) % (seq_length + 1))
    places = np.repeat(np.arange(len(documents)), [len(document) + bos + eod for document in documents])
    in_rows = {(document, index // (seq_length + 1)) for index, document in enumerate(places.tolist())}
    assert packer.num_cut_documents == sum(count > 1 for count in Counter(d for d, _ in in_rows).values())


@given(documents=DOCUMENTS, seq_length=st.integers(1, 40), batch=st.integers(1, 7), eod=st.booleans())
def test_one_document_per_row(documents: list[list[int]], seq_length: int, batch: int, eod: bool) -> None:
    layout = RowLayout(seq_length=seq_length, pad_id=PAD, eod_id=EOD if eod else None)
    rows, packer = pack(DOCUMENT, layout, split(documents, batch))
    whole = [document + [EOD] * eod for document in documents]
    length = seq_length + 1
    pieces = [document[k : k + length] for document in whole for k in range(0, len(document), length)]
    assert rows.tolist() == [piece + [PAD] * (length - len(piece)) for piece in pieces]
    assert packer.num_tokens == sum(map(len, whole)) and packer.padding_tokens == rows.size - packer.num_tokens
    assert packer.num_cut_documents == sum(len(document) > length for document in whole)
    assert (packer.tail_tokens, packer.dropped_tokens) == (0, 0)


@given(
    lengths=st.lists(st.integers(1, 40), max_size=60),
    seq_length=st.integers(1, 24),
    batch=st.integers(1, 9),
    window=st.integers(1, 200),
)
def test_best_fit_keeps_documents_whole(lengths: list[int], seq_length: int, batch: int, window: int) -> None:
    """Each document is whole in one row, or split into whole rows and a rest; none is lost or repeated."""
    documents = [[number] * length for number, length in enumerate(lengths)]
    layout = RowLayout(seq_length=seq_length, pad_id=PAD, eod_id=EOD)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WINDOW_TOKENS", "MAX_WINDOW_TOKENS"):
            patch.setattr(best_fit, name, window)
        rows, packer = pack(BEST_FIT, layout, split(documents, batch))
        once, _ = pack(BEST_FIT, layout, [join_encoded(documents)])
    np.testing.assert_array_equal(rows, once, "rows do not depend on the batches")
    length = seq_length + 1
    expected = Counter(
        tuple(piece)
        for document in documents
        for piece in [[*document, EOD][k : k + length] for k in range(0, len(document) + 1, length)]
    )
    found: Counter[tuple[int, ...]] = Counter()
    for row in rows:
        real = strip_padding(row[None], PAD)
        for piece in np.split(real, np.flatnonzero(real == EOD) + 1):
            found[tuple(piece.tolist())] += piece.size > 0
    assert +found == expected
    assert packer.padding_tokens == rows.size - packer.num_tokens == int((rows == PAD).sum())
    assert packer.num_cut_documents == sum(size + 1 > length for size in lengths)


@given(st.lists(st.integers(1, 12), max_size=60))
def test_assignment_is_best_fit_decreasing(lengths: list[int]) -> None:
    """The same rows as piece by piece: the longest first, each to the fullest row that has room."""
    rows, num_rows = assign_rows(np.array(lengths, np.int64), 12)
    fills: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [index for index, fill in enumerate(fills) if fill + length <= 12]
        if fitting:
            fills[max(fitting, key=lambda index: fills[index])] += length
        else:
            fills.append(length)
    found = np.bincount(rows, lengths, num_rows).astype(int).tolist() if lengths else []
    assert sorted(found) == sorted(fills)


def test_best_fit_packs_tighter_than_windows_alone() -> None:
    """Rows that are not full are packed again with the next window."""
    documents = [[number % 90] * length for number, length in enumerate([70, 20, 40, 9] * 400)]
    layout = RowLayout(seq_length=100, pad_id=PAD, eod_id=EOD)
    shares = []
    for part in (best_fit._CARRIED_PART, 1 << 30):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (("WINDOW_TOKENS", 2000), ("MAX_WINDOW_TOKENS", 2000), ("_CARRIED_PART", part)):
                patch.setattr(best_fit, name, value)
            rows, packer = pack(BEST_FIT, layout, split(documents, 50))
        assert packer.num_cut_documents == 0
        shares.append(packer.padding_tokens / rows.size)
    assert shares[0] < shares[1]


def test_a_window_is_bounded() -> None:
    """The tokens that wait for a row do not grow with the corpus, even if no two documents fit into a row."""
    packer = make_packer(BEST_FIT, RowLayout(seq_length=9, pad_id=PAD, eod_id=None))
    assert isinstance(packer, best_fit.BestFitPacker)
    packer._window_tokens = 600
    for _ in range(50):
        list(packer.add(join_encoded([[1] * 6] * 30)))
        assert packer._waiting_tokens < 600
    assert len(np.concatenate(list(packer.finish()))) <= 100


@pytest.mark.parametrize("packing", [CONCAT, DOCUMENT, BEST_FIT])
def test_rows_do_not_depend_on_batches(packing: str) -> None:
    layout = RowLayout(seq_length=6, pad_id=PAD, eod_id=EOD)
    documents = [list(range(k)) for k in (0, 1, 17, 3, 0, 6)]
    one, _ = pack(packing, layout, [join_encoded(documents)])
    many, _ = pack(packing, layout, [join_encoded([document]) for document in documents])
    np.testing.assert_array_equal(one, many)


@pytest.mark.parametrize("parts", [[], [[]], [[1], [], [2, 3]]])
def test_join_encoded(parts: list[list[int]]) -> None:
    joined = join_encoded(parts)
    assert joined.ids.dtype == np.int32
    got = [joined.ids[a:b].tolist() for a, b in zip(joined.offsets, joined.offsets[1:], strict=False)]
    assert got == parts
