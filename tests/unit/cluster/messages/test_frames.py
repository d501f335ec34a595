from __future__ import annotations

import os
import time

import pytest

from ascend_cpt.cluster.messages.frames import FrameReader, FrameWriter, InvalidFrame

KEY = b"k" * 32


def frames(*payloads: bytes, key: bytes = KEY) -> list[bytes]:
    writer = FrameWriter(key)
    return [writer.make_header(payload) + payload for payload in payloads]


@pytest.mark.parametrize("part_bytes", [1, 7, 1000])
def test_payloads_survive_any_division_into_parts(part_bytes: int) -> None:
    payloads = [b"", b"x", os.urandom(500), b"\n" * 40]
    stream = b"".join(frames(*payloads))
    reader = FrameReader(KEY, 1000)
    parts = [stream[start : start + part_bytes] for start in range(0, len(stream), part_bytes)]
    assert [payload for part in parts for payload in reader.feed(part)] == payloads


def test_changed_repeated_reordered_and_foreign_frames_are_refused() -> None:
    first, second = frames(b"first", b"second")
    for stream in (
        first[:-1] + b"T",
        first[:10] + bytes([first[10] ^ 1]) + first[11:],
        first + first,
        second,
        second + first,
        frames(b"first", key=b"o" * 32)[0],
    ):
        with pytest.raises(InvalidFrame):
            FrameReader(KEY, 1000).feed(stream)
    assert FrameReader(KEY, 1000).feed(first + second) == [b"first", b"second"]


def test_a_long_frame_is_refused_before_it_is_received() -> None:
    (frame,) = frames(bytes(1001))
    with pytest.raises(InvalidFrame, match="a frame of 1001 bytes"):
        FrameReader(KEY, 1000).feed(frame[:36])


def test_time_is_linear_in_the_length() -> None:
    def measure(num_bytes: int) -> float:
        (frame,) = frames(bytes(num_bytes))
        reader = FrameReader(KEY, 1 << 30)
        start_s = time.process_time()
        for start in range(0, len(frame), 4096):
            reader.feed(frame[start : start + 4096])
        return time.process_time() - start_s

    # Copying all that was received for every part would take 25 times as long for a length five times as large.
    assert measure(40 << 20) < 15 * max(measure(8 << 20), 0.01)
