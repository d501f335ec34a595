"""Frames, each with a length, an HMAC-SHA256 and a payload.

The HMAC covers the payload's SHA-256, which is computed once for many receivers, and a counter, which prevents frames
from being replayed or dropped.
"""

from __future__ import annotations

import hashlib
import hmac
import struct

_HEADER = struct.Struct(">I32s")
_COUNTED = struct.Struct(">QI")


class InvalidFrame(ValueError):
    """A frame that is too long or was not made by the peer."""


class _Counter:
    """Makes the HMACs for successive frames."""

    def __init__(self, key: bytes) -> None:
        self._key, self._number = key, 0

    def sign(self, length: int, payload_hash: bytes) -> bytes:
        code = hmac.digest(self._key, _COUNTED.pack(self._number, length) + payload_hash, "sha256")
        self._number += 1
        return code


def hash_payload(payload: bytes) -> bytes:
    """Return a payload's SHA-256, from which the headers for all receivers are made."""
    return hashlib.sha256(payload).digest()


class FrameWriter:
    """Makes the headers of the frames that one side sends."""

    def __init__(self, key: bytes) -> None:
        self._counter = _Counter(key)

    def make_header(self, payload: bytes, payload_hash: bytes | None = None) -> bytes:
        """Return the header that precedes the next payload. `payload_hash` is from `hash_payload`, if known."""
        payload_hash = hash_payload(payload) if payload_hash is None else payload_hash
        return _HEADER.pack(len(payload), self._counter.sign(len(payload), payload_hash))


class FrameReader:
    """Splits received bytes into payloads in time linear in the number of bytes, however they arrive."""

    def __init__(self, key: bytes, max_bytes: int) -> None:
        self._counter, self._max_bytes = _Counter(key), max_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Return the payloads that `data` completes.

        Raises:
            InvalidFrame: for a payload of more than `max_bytes`, before it is received, or for a wrong HMAC.
        """
        self._buffer += data
        payloads = []
        start = 0
        while len(self._buffer) - start >= _HEADER.size:
            length, code = _HEADER.unpack_from(self._buffer, start)
            if length > self._max_bytes:
                raise InvalidFrame(f"a frame of {length} bytes")
            end = start + _HEADER.size + length
            if len(self._buffer) < end:
                break
            payload = bytes(memoryview(self._buffer)[start + _HEADER.size : end])
            if not hmac.compare_digest(code, self._counter.sign(length, hash_payload(payload))):
                raise InvalidFrame("a wrong HMAC")
            payloads.append(payload)
            start = end
        del self._buffer[:start]
        return payloads
