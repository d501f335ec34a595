"""Splitting the input into contiguous shards of about equal weight, without gaps or overlaps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ascend_cpt.data.readers.formats import Extent
from ascend_cpt.data.readers.input_files import InputFile
from ascend_cpt.data.readers.spans import Span, split_input

EXTENT = st.builds(
    lambda positions, weight: Extent(num_positions=positions, weight=max(positions, weight)),
    st.integers(0, 50),
    st.integers(0, 1000),
)


def make_files(num_files: int) -> list[InputFile]:
    return [InputFile(path=f"/{k}", name=str(k), format="json", size_bytes=1) for k in range(num_files)]


@given(extents=st.lists(st.lists(EXTENT, max_size=4), min_size=1, max_size=6), num_shards=st.integers(1, 40))
def test_each_position_is_in_one_span_and_in_order(extents: list[list[Extent]], num_shards: int) -> None:
    files = make_files(len(extents))
    shards = split_input(files, extents, num_shards)
    assert len(shards) == num_shards
    met: dict[str, int] = {}
    spans: list[Span] = [span for shard in shards for span in shard]
    assert [span.file.path for span in spans] == sorted(span.file.path for span in spans)
    for span in spans:
        assert span.start == met.get(span.file.path, 0) < span.stop
        met[span.file.path] = span.stop
    sizes = {file.path: sum(extent.num_positions for extent in part) for file, part in zip(files, extents, strict=True)}
    assert met == {path: size for path, size in sizes.items() if size}


@pytest.mark.parametrize("num_shards", [1, 2, 3, 7, 100, 1003])
def test_parts_are_about_equal_by_weight(num_shards: int) -> None:
    extents = [[Extent(num_positions=100_000, weight=10_000_000)], [Extent(num_positions=900_000, weight=10_000_000)]]
    shards = split_input(make_files(2), extents, num_shards)
    weights = [sum(span.weight for span in shard) for shard in shards]
    assert all(abs(weight - 20_000_000 / num_shards) < 200 for weight in weights)


def test_more_shards_than_positions_gives_empty_shards() -> None:
    shards = split_input(make_files(1), [[Extent(num_positions=3, weight=3)]], 10)
    assert len(shards) == 10
    assert sorted(len(shard) for shard in shards) == [0] * 7 + [1] * 3


def test_empty_input() -> None:
    assert split_input(make_files(1), [[Extent(num_positions=0, weight=0)]], 3) == [[], [], []]
