"""Computes how much memory an Arrow array's values would take as Python objects, without converting them."""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa

_OBJECT_BYTES = 64


class ValueSize(NamedTuple):
    """The size of an array's values."""

    num_bytes: int
    """Exact for a single text, otherwise an approximate upper bound."""
    is_nested: bool
    """Whether it is a bound that includes the overhead of objects."""


def measure_values(array: pa.Array) -> ValueSize:
    """Return the size of all values in an array."""
    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return ValueSize(_measure_texts(array), False)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return ValueSize(_measure_texts(array), False)
    if pa.types.is_dictionary(kind):
        return _measure_chosen(array, array.dictionary, array.indices)
    if kind.id in (pa.lib.Type_STRING_VIEW, pa.lib.Type_BINARY_VIEW):
        return ValueSize(_measure_views(array), False)
    return ValueSize(_measure_nested(array), True)


def _measure_texts(array: pa.Array) -> int:
    return _measure_one(array) if len(array) == 1 else int(array.nbytes)


def _measure_views(array: pa.Array) -> int:
    # Several views can show the same bytes. Arrow has no `nbytes` for views.
    total = sum(buffer.size for buffer in array.buffers() if buffer is not None)
    return _measure_one(array) if len(array) == 1 else len(array) * int(total)


def _measure_one(array: pa.Array) -> int:
    buffer = array[0].as_buffer()
    return 0 if buffer is None else int(buffer.size)


def _measure_chosen(array: pa.Array, values: pa.Array, indices: pa.Array) -> ValueSize:
    """Return the size of values chosen by index. It is exact for one value; otherwise, all count as the largest."""
    if len(array) == 1:
        index = indices[0].as_py()
        return ValueSize(0, False) if index is None else measure_values(values.slice(index, 1))
    return ValueSize(len(array) * int(values.nbytes), False)


def _measure_nested(array: pa.Array) -> int:
    """Return an upper bound on the memory for numbers, lists and structs."""
    kind = array.type
    own = _OBJECT_BYTES * len(array)
    if isinstance(array, pa.ExtensionArray):
        return measure_values(array.storage).num_bytes
    if isinstance(array, pa.RunEndEncodedArray):
        if len(array) != 1:
            return own + len(array) * int(array.values.nbytes)
        return own + measure_values(array.values.slice(array.find_physical_offset(), 1)).num_bytes
    if isinstance(array, pa.StructArray):
        return 4 * own + sum(_bound(child) for child in array.flatten())
    if isinstance(array, pa.MapArray):
        first, after = array.offsets[0].as_py(), array.offsets[len(array)].as_py()
        return own + sum(_bound(child.slice(first, after - first)) for child in (array.keys, array.items))
    if isinstance(array, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        return own + _bound(array.flatten())
    if kind.num_fields:  # unions and list views, in which every value can use a child
        return own + max(1, len(array)) * int(array.nbytes) * _OBJECT_BYTES
    return own + int(array.nbytes)


def _bound(array: pa.Array) -> int:
    return _OBJECT_BYTES * len(array) + measure_values(array).num_bytes
