"""Measure the authentication of a job's connections: the handshake, and the HMAC of each message.

    python benchmarks/authentication.py [--connections 512] [--seconds 1]

Connects clients to the server over loopback with the handshake, and to a bare listener without it; writes and reads
frames of several sizes with an HMAC, and with a length alone. The load of a job follows from one heartbeat per node.
"""

from __future__ import annotations

import argparse
import secrets
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ascend_cpt.cluster.messages.connection import connect
from ascend_cpt.cluster.messages.frames import FrameReader, FrameWriter
from ascend_cpt.cluster.messages.ports import HEARTBEAT_S
from ascend_cpt.cluster.messages.secret import derive_key
from ascend_cpt.cluster.messages.server import Server

PURPOSE = "benchmark"
SIZES = (200, 20_000, 1 << 20)
NUM_NODES = 512
ROUNDS = 3


def connect_with_handshake(num: int) -> float:
    """Return the seconds until the server has admitted `num` clients, one after another."""
    key = derive_key(secrets.token_bytes(32), PURPOSE)
    server = Server(("127.0.0.1", 0), key=key, purpose=PURPOSE, size=num)
    port = server._listener.getsockname()[1]

    def serve() -> None:
        while len(server.peers) < num:
            for _ in server.poll(0.1):
                pass

    thread = threading.Thread(target=serve)
    thread.start()
    start_s = time.perf_counter()
    clients = [connect(("127.0.0.1", port), key=key, purpose=PURPOSE, number=number) for number in range(num)]
    thread.join()
    taken_s = time.perf_counter() - start_s
    for client in clients:
        client.close()
    server.close()
    return taken_s


def connect_without(num: int) -> float:
    """Return the seconds until the server has accepted `num` bare TCP connections."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=num)
    accepted: list[socket.socket] = []

    def serve() -> None:
        while len(accepted) < num:
            accepted.append(listener.accept()[0])

    thread = threading.Thread(target=serve)
    thread.start()
    start_s = time.perf_counter()
    clients = [socket.create_connection(listener.getsockname()) for _ in range(num)]
    thread.join()
    taken_s = time.perf_counter() - start_s
    for connected in (*clients, *accepted, listener):
        connected.close()
    return taken_s


def repeat(work: Callable[[], object], seconds: float) -> float:
    """Return the seconds per call, measured over about `seconds`."""
    count, start_s = 0, time.perf_counter()
    while (taken_s := time.perf_counter() - start_s) < seconds:
        work()
        count += 1
    return taken_s / count


def measure_messages(size: int, seconds: float) -> tuple[float, float]:
    """Return the seconds to write and read a message of `size` bytes, with an HMAC and with only a length."""
    payload, key = secrets.token_bytes(size), secrets.token_bytes(32)
    writer, reader = FrameWriter(key), FrameReader(key, size)

    def exchange() -> None:
        assert reader.feed(writer.make_header(payload) + payload) == [payload]

    length = struct.Struct("!I")

    def exchange_plain() -> None:
        data = bytearray(length.pack(size) + payload)
        (stop,) = length.unpack_from(data)
        assert bytes(memoryview(data)[length.size : length.size + stop]) == payload

    return repeat(exchange, seconds), repeat(exchange_plain, seconds)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=512, help="clients in a round (default: 512)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement of messages (default: 1)")
    args = parser.parse_args()
    pairs = [(connect_with_handshake(args.connections), connect_without(args.connections)) for _ in range(ROUNDS)]
    with_s, without_s = (min(column) / args.connections for column in zip(*pairs, strict=True))
    print(f"connection: {with_s * 1e6:8.1f} us with the handshake, {without_s * 1e6:6.1f} us bare TCP")
    for size in SIZES:
        signed_s, plain_s = measure_messages(size, args.seconds)
        print(f"message of {size:>9,} bytes: {signed_s * 1e6:8.1f} us with an HMAC, {plain_s * 1e6:6.1f} us without")
        if size == SIZES[0]:
            share = NUM_NODES / HEARTBEAT_S * signed_s
    print(f"heartbeats of {NUM_NODES} nodes, one per node and {HEARTBEAT_S:g} s: {share:.2%} of one core on node 0")


if __name__ == "__main__":
    main()
