"""Packing: rows contain all documents, and token counts are correct."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ascend_cpt.data.packed.packing import Packer, RowLayout, Rows
from ascend_cpt.data.tokenizing.base import Encoded, join_encoded

EOD, BOS, PAD = 900, 901, 902
DOCUMENTS = st.lists(st.lists(st.integers(0, 99), max_size=30), max_size=20)


def pack(layout: RowLayout, batches: list[Encoded]) -> tuple[Rows, int, int, Packer]:
    packer = Packer(layout)
    rows = [packer.add(batch) for batch in batches]
    tail = packer.finish()
    return np.concatenate([*rows, tail.rows]), tail.tail_tokens, tail.dropped_tokens, packer


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
    batches = [join_encoded(documents[k : k + batch]) for k in range(0, len(documents), batch)]
    rows, tail_tokens, dropped, packer = pack(layout, batches)
    expected = [token for document in documents for token in [BOS] * bos + document + [EOD] * eod]
    assert rows.dtype == np.int32 and rows.shape[1] == seq_length + 1
    assert packer.num_tokens == len(expected)
    assert dropped == (len(expected) % (seq_length + 1) if drop else 0)
    stream = rows.reshape(-1).tolist()
    num_real = len(expected) - dropped
    assert stream[:num_real] == expected[:num_real]
    assert stream[num_real:] == [PAD] * (len(stream) - num_real)
    assert len(stream) - num_real < seq_length + 1
    assert tail_tokens == (0 if drop else len(expected) % (seq_length + 1))


def test_rows_do_not_depend_on_batches() -> None:
    layout = RowLayout(seq_length=6, pad_id=PAD, eod_id=EOD)
    documents = [list(range(k)) for k in (0, 1, 17, 3, 0, 6)]
    one, *_ = pack(layout, [join_encoded(documents)])
    many, *_ = pack(layout, [join_encoded([document]) for document in documents])
    np.testing.assert_array_equal(one, many)


@pytest.mark.parametrize("parts", [[], [[]], [[1], [], [2, 3]]])
def test_join_encoded(parts: list[list[int]]) -> None:
    joined = join_encoded(parts)
    assert joined.ids.dtype == np.int32
    got = [joined.ids[a:b].tolist() for a, b in zip(joined.offsets, joined.offsets[1:], strict=False)]
    assert got == parts
