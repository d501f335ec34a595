"""Appends pieces to a serialized SentencePiece model without the protobuf library.

A protobuf message is a sequence of numbered fields. Appending a repeated field adds an element, and appending a message
field merges it into the one before (https://protobuf.dev/programming-guides/encoding/), so the old bytes are kept.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

# Types of pieces; None is a normal piece.
CONTROL, UNUSED = 3, 5
_PIECES, _TRAINER = 1, 2  # fields of the model
_TEXT, _SCORE, _TYPE = 1, 2, 3  # fields of a piece
_MODEL_TYPE, _VOCAB_SIZE = 3, 4  # fields of the trainer's settings
_BPE = 2
_VARINT, _I64, _LENGTH, _I32 = 0, 1, 2, 5  # wire types


def is_bpe(model: bytes) -> bool:
    """Return whether a serialized model is a BPE model."""
    kinds = [
        value
        for number, settings in _iterate(model)
        if number == _TRAINER and isinstance(settings, bytes)
        for field, value in _iterate(settings)
        if field == _MODEL_TYPE
    ]
    return kinds[-1:] == [_BPE]


def append_pieces(model: bytes, pieces: Sequence[tuple[str, float, int | None]], vocab_size: int) -> bytes:
    """Return the model with more pieces (text, score, type), and with `vocab_size` in the trainer's settings."""
    parts = [model]
    for text, score, kind in pieces:
        piece = _write_bytes(_TEXT, text.encode("utf-8")) + _write_key(_SCORE, _I32) + struct.pack("<f", score)
        if kind is not None:
            piece += _write_key(_TYPE, _VARINT) + _write_varint(kind)
        parts.append(_write_bytes(_PIECES, piece))
    parts.append(_write_bytes(_TRAINER, _write_key(_VOCAB_SIZE, _VARINT) + _write_varint(vocab_size)))
    return b"".join(parts)


def _iterate(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the number and value of each field."""
    place = 0
    while place < len(message):
        key, place = _read_varint(message, place)
        wire = key & 7
        if wire == _VARINT:
            value, place = _read_varint(message, place)
            yield key >> 3, value
            continue
        size = {_I64: 8, _I32: 4}.get(wire)
        if size is None:
            size, place = _read_varint(message, place)
        yield key >> 3, message[place : place + size]
        place += size


def _read_varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place


def _write_varint(value: int) -> bytes:
    written = bytearray()
    while value >= 0x80:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*written, value])


def _write_key(field: int, wire: int) -> bytes:
    return _write_varint(field << 3 | wire)


def _write_bytes(field: int, value: bytes) -> bytes:
    return _write_key(field, _LENGTH) + _write_varint(len(value)) + value
