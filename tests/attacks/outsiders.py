"""Hostile peers that do not know the job's secret. Each returns its outcome, which must be the expected one."""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable

from ascend_cpt.cluster.messages.connection import RefusedError, connect
from ascend_cpt.cluster.messages.handshake import ANSWER_BYTES, GREETING_BYTES, MAGIC, Session, answer_greeting
from ascend_cpt.cluster.messages.secret import INSECURE_SECRET, derive_key
from tests.attacks.target import CLOSED, REFUSED, Target, relayed

Attack = Callable[[Target], str]
OUTSIDERS: dict[str, tuple[Attack, str]] = {}
NUM_IDLE = 700
NUM_FLOOD = 1000


def outsider(name: str, outcome: str = CLOSED) -> Callable[[Attack], Attack]:
    def note(attack: Attack) -> Attack:
        OUTSIDERS[name] = (attack, outcome)
        return attack

    return note


def line(**message: object) -> bytes:
    return json.dumps(message).encode() + b"\n"


OLD_JOIN = {"kind": "join", "host": "x", "size": [4, 2], "num_restarts": 0, "time_s": 0}
WORDS: dict[str, tuple[bytes, ...]] = {
    "an HTTP request": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"x" * 100),
    "a TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(506),),
    "an SSH banner": (b"SSH-2.0-OpenSSH_9.6\r\n" + bytes(200),),
    "node 99 of 2 sends signal 9": (line(**OLD_JOIN, node=99), line(kind="signal", number=9)),
    "an early outsider as node 1": (line(**OLD_JOIN, node=1),),
    "a forged end of node 1": (line(**OLD_JOIN, node=1), line(kind="ended", outcome={"end": "final", "code": 0})),
    "a forged failure with exit code 0": (line(rank=1, failure="bang", exit_code=0), bytes(60)),
    "2,000 open brackets": (b"[" * 2000 + b"\n",),
    "a size without items": (line(**(OLD_JOIN | {"size": []}), node=1),),
    "a list as node": (line(**OLD_JOIN, node=[1]),),
    "an infinite number": (line(**OLD_JOIN, node=1), b'{"kind": "signal", "number": Infinity}\n'),
    "40 MB without a line break": (b"x" * (40 << 20),),
    "1 MB of zeros": (bytes(1 << 20),),
    "1 MB of random bytes": (os.urandom(1 << 20),),
    "a greeting in place of an answer": (MAGIC + os.urandom(ANSWER_BYTES - len(MAGIC)),),
    "an answer of zeros": (MAGIC + bytes(ANSWER_BYTES - len(MAGIC)),),
    "the highest number": (MAGIC + b"\xff" * (ANSWER_BYTES - len(MAGIC)),),
    "an older version": (MAGIC[:-1] + b"\x01" + bytes(ANSWER_BYTES - len(MAGIC)),),
    "nothing but line breaks": (b"\n" * (1 << 16),),
}
for _name, _parts in WORDS.items():
    outsider(_name)(lambda target, parts=_parts: target.throw(*parts))  # type: ignore[misc]


@outsider("sends nothing")
def say_nothing(target: Target) -> str:
    return target.throw()


@outsider("disconnects at once", "gone")
def hang_up(target: Target) -> str:
    target.dial().close()
    return "gone"


@outsider("resets the connection", "gone")
def reset(target: Target) -> str:
    with target.dial() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return "gone"


@outsider("closes its half and waits")
def close_half(target: Target) -> str:
    with target.dial() as client:
        client.shutdown(socket.SHUT_WR)
        return target.see_end(client)


@outsider("sends urgent data")
def send_urgent(target: Target) -> str:
    with target.dial() as client:
        client.send(b"!", socket.MSG_OOB)
        client.sendall(bytes(ANSWER_BYTES))
        return target.see_end(client)


@outsider("sends one byte at a time and never finishes")
def drip(target: Target) -> str:
    with target.dial() as client:
        with contextlib.suppress(OSError):
            for byte in MAGIC + bytes(ANSWER_BYTES):
                client.sendall(bytes([byte]))
                time.sleep(0.05)
        return target.see_end(client)


@outsider("sends all but the last byte of an answer")
def stop_short(target: Target) -> str:
    return target.throw(MAGIC + bytes(ANSWER_BYTES - len(MAGIC) - 1))


@outsider("never reads")
def never_read(target: Target) -> str:
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        client.connect(target.address)
        time.sleep(target.handshake_s + 0.5)
        return target.see_end(client)


def _answer(target: Target, key: bytes, *, purpose: str | None = None) -> str:
    try:
        connect(target.address, key=key, purpose=purpose or target.purpose, number=target.spare).close()
    except RefusedError:
        return REFUSED
    return "admitted"


@outsider("has another secret", REFUSED)
def other_secret(target: Target) -> str:
    return _answer(target, b"\x01" * 32)


@outsider("has an empty secret", REFUSED)
def empty_secret(target: Target) -> str:
    return _answer(target, b"")


@outsider("was started with --insecure", REFUSED)
def insecure(target: Target) -> str:
    key = derive_key(INSECURE_SECRET, target.purpose)
    return REFUSED if {_answer(target, key), _answer(target, key.hex().encode())} == {REFUSED} else "admitted"


@outsider("knows the key of another purpose", REFUSED)
def other_purpose(target: Target) -> str:
    return _answer(target, derive_key(target.key, "launchers"), purpose="workers")


@outsider("sends the server's nonce back as its own")
def reflect_nonce(target: Target) -> str:
    with target.dial() as client:
        greeting = client.recv(GREETING_BYTES, socket.MSG_WAITALL)
        nonce = greeting[len(MAGIC) :]
        client.sendall(MAGIC + struct.pack(">I", target.spare) + nonce + hmac.digest(nonce, nonce, "sha256"))
        return target.see_end(client)


@outsider("sends a server's proof in place of a client's")
def reflect_proof(target: Target) -> str:
    with target.dial() as client:
        greeting = client.recv(GREETING_BYTES, socket.MSG_WAITALL)
        client_nonce = bytes(32)
        session = Session(
            key=b"guess" * 8,
            purpose=target.purpose,
            number=target.spare,
            server_nonce=greeting[len(MAGIC) :],
            client_nonce=client_nonce,
        )
        client.sendall(MAGIC + struct.pack(">I", target.spare) + client_nonce + session.prove("server"))
        return target.see_end(client)


@outsider("repeats the answer of a node of the job")
def replay_answer(target: Target) -> str:
    with relayed(target) as relay:
        connect(relay.address, key=target.key, purpose=target.purpose, number=target.spare).close()
        return target.throw(relay.parts[0])


@outsider("changes the number in the answer of a node of the job", REFUSED)
def change_number(target: Target) -> str:
    def change(number: int, part: bytes) -> bytes:
        start = len(MAGIC)
        return part[:start] + struct.pack(">I", target.spare ^ 1) + part[start + 4 :] if number == 0 else part

    with relayed(target, change) as relay:
        try:
            connect(relay.address, key=target.key, purpose=target.purpose, number=target.spare).close()
        except RefusedError:
            return REFUSED
        return "admitted"


@outsider("takes the place of the server", REFUSED)
def pretend_server(target: Target) -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                client.sendall(MAGIC + bytes(32))
                client.recv(ANSWER_BYTES, socket.MSG_WAITALL)
                client.sendall(os.urandom(32))

        threading.Thread(target=serve, daemon=True).start()
        try:
            connect(listener.getsockname(), key=target.key, purpose=target.purpose, number=target.spare)
        except RefusedError:
            return REFUSED
        return "admitted"


@outsider("sends an answer to the greeting of another connection")
def cross_answer(target: Target) -> str:
    with target.dial() as first, target.dial() as second:
        greeting = first.recv(GREETING_BYTES, socket.MSG_WAITALL)
        # The key is right, but the proof is for another nonce.
        answer, _ = answer_greeting(greeting, key=target.key, purpose=target.purpose, number=target.spare)
        second.sendall(answer)
        return target.see_end(second)


@outsider(f"holds {NUM_IDLE} idle connections", "all closed")
def hold_idle(target: Target) -> str:
    clients = []
    try:
        for _ in range(NUM_IDLE):
            clients.append(target.dial())
        lengths = {len(target.drain(client)) for client in clients}
        return "all closed" if max(lengths) <= GREETING_BYTES else f"answered {max(lengths)} bytes"
    finally:
        for client in clients:
            client.close()


@outsider(f"connects {NUM_FLOOD} times while a node of the job connects", "the node was admitted")
def flood(target: Target) -> str:
    def call() -> None:
        for _ in range(NUM_FLOOD):
            with contextlib.suppress(OSError):
                target.dial().close()

    thread = threading.Thread(target=call)
    thread.start()
    try:
        for _ in range(5):
            time.sleep(0.02)
            with contextlib.suppress(RefusedError):
                connect(target.address, key=target.key, purpose=target.purpose, number=target.spare).close()
                return "the node was admitted"
        return "the node was kept out"
    finally:
        thread.join()
