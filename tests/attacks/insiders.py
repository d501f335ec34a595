"""Hostile peers that know the secret: a node that is broken, or an attacker on the path of one.

They have a number that no process of the job has, so that the job needs nothing from them.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from ascend_cpt.cluster.messages.connection import Connection, RefusedError, connect
from tests.attacks.target import REFUSED, Target, relayed

Attack = Callable[[Target], str]
INSIDERS: dict[str, tuple[Attack, str]] = {}
DROPPED = "dropped"
IGNORED = "ignored"
JOIN: dict[str, Any] = {"kind": "Join", "size": [4, 2, 0], "host": "x", "num_restarts": 0, "time_s": 0.0, "cause": ""}
OUTCOME: dict[str, Any] = {"end": "failed", "code": 1, "reason": "", "lines": [], "step": None}


def insider(name: str, outcome: str = DROPPED) -> Callable[[Attack], Attack]:
    def note(attack: Attack) -> Attack:
        INSIDERS[name] = (attack, outcome)
        return attack

    return note


def enter(target: Target) -> Connection:
    return connect(target.address, key=target.key, purpose=target.purpose, number=target.spare)


def see(connection: Connection, limit_s: float = 0.5) -> str:
    """Return whether the server drops a connection, refuses it with a reason, or ignores what it sent."""
    deadline = time.monotonic() + limit_s
    try:
        connection.socket.settimeout(0.1)
    except OSError:  # closed while the attack was sending
        return DROPPED
    while time.monotonic() < deadline:
        payloads = connection.receive()
        if payloads is None:
            return DROPPED
        if any(json.loads(payload)["kind"] == "Refused" for payload in payloads):
            return REFUSED
    return IGNORED


def say(*messages: dict[str, Any] | bytes) -> Attack:
    """Return an attack that sends messages, each in a right frame."""

    def attack(target: Target) -> str:
        connection = enter(target)
        try:
            for message in messages:
                if isinstance(message, dict) and message.get("size") == JOIN["size"]:
                    message = message | {"size": target.size}
                connection.send(message if isinstance(message, bytes) else json.dumps(message).encode())
            return see(connection)
        finally:
            connection.close()

    return attack


SPEECHES: dict[str, tuple[dict[str, Any] | bytes, ...]] = {
    "another node than those of the job": (JOIN, {"kind": "Stop", "number": 15}),
    "signal 9": ({"kind": "Stop", "number": 9},),
    "signal 0": ({"kind": "Stop", "number": 0},),
    "true as a signal": ({"kind": "Stop", "number": True},),
    "an infinite signal": (b'{"kind": "Stop", "number": Infinity}',),
    "a signal of 5,000 digits": (b'{"kind": "Stop", "number": ' + b"9" * 5000 + b"}",),
    "100,000 open brackets": (b"[" * 100_000,),
    "100,000 nested objects": (b'{"a":' * 100_000,),
    "a size without items": (JOIN | {"size": []},),
    "a size of texts": (JOIN | {"size": ["4", "2"]},),
    "a host of 1,000 characters": (JOIN | {"host": "x" * 1000},),
    "a time that is no number": (
        b'{"kind": "Join", "size": [4, 2, 0], "host": "x", "num_restarts": 0, "time_s": NaN, "cause": ""}',
    ),
    "a time of 1e999": (
        b'{"kind": "Join", "size": [4, 2, 0], "host": "x", "num_restarts": 0, "time_s": 1e999, "cause": ""}',
    ),
    "minus one restart": (JOIN | {"num_restarts": -1},),
    "a field too many": (JOIN | {"node": 1},),
    "a field too few": ({"kind": "Join", "size": [4, 2]},),
    "an unknown kind": ({"kind": "shutdown"},),
    "a kind that is a list": ({"kind": ["Stop"], "number": 15},),
    "no kind": ({"number": 15},),
    "a text": (b'"Stop"',),
    "null": (b"null",),
    "no bytes": (b"",),
    "bytes that are not UTF-8": (b'{"kind": "\xff\xfe"}',),
    "zeros": (bytes(1000),),
    "a failure that ends with code 0": ({"kind": "Ended", "outcome": OUTCOME | {"code": 0}},),
    "success that ends with code 1": ({"kind": "Ended", "outcome": OUTCOME | {"end": "done"}},),
    "an outcome of 1,000 lines": ({"kind": "Ended", "outcome": OUTCOME | {"lines": ["x"] * 1000}},),
    "an end that does not exist": ({"kind": "Ended", "outcome": OUTCOME | {"end": "won"}},),
    "an outcome that is a number": ({"kind": "Ended", "outcome": 7},),
    "a message for launchers": ({"kind": "Go", "warnings": []},),
}
for _name, _messages in SPEECHES.items():
    insider(_name)(say(*_messages))
insider("the end of an attempt in which it is not", IGNORED)(say({"kind": "Ended", "outcome": OUTCOME}))
insider("a stop before it has joined", IGNORED)(say({"kind": "Stop", "number": 15}))
insider("a size that differs", REFUSED)(say(JOIN | {"size": [6, 3, 0]}))
insider("control characters and half a surrogate pair", REFUSED)(
    say(
        b'{"kind": "Join", "size": [6, 3, 0], "host": "\\u001b[2J\\ud800", "num_restarts": 0, "time_s": 0, "cause": ""}'
    )
)


@insider("a frame of 4 GB")
def huge_frame(target: Target) -> str:
    connection = enter(target)
    connection.socket.sendall(struct.pack(">I", (1 << 32) - 1) + bytes(32))
    return see(connection)


@insider("a frame of 900 KB in parts of one byte, unfinished", IGNORED)
def unfinished_frame(target: Target) -> str:
    connection = enter(target)
    connection.socket.sendall(struct.pack(">I", 900_000) + bytes(32))
    for _ in range(2000):
        connection.socket.send(b"x")
    try:
        return see(connection)
    finally:
        connection.close()


@insider("a frame with a wrong code")
def wrong_code(target: Target) -> str:
    connection = enter(target)
    connection.socket.sendall(struct.pack(">I", 2) + bytes(32) + b"{}")
    return see(connection)


@insider("asks for much and reads nothing", "no delay")
def never_read(target: Target) -> str:
    connection = enter(target)
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    request = json.dumps(JOIN | {"size": [6, 3, 0]}).encode()
    with contextlib.suppress(OSError):
        connection.socket.settimeout(0.5)
        for _ in range(20_000):
            if not connection.send(request):
                break
    # Another one is served at once.
    start_s = time.monotonic()
    other = say(JOIN | {"size": [6, 3, 0]})(target)
    took_s = time.monotonic() - start_s
    connection.close()
    return "no delay" if other == REFUSED and took_s < 2 else f"{other} after {took_s:.1f} s"


def _on_path(change: Callable[[bytes], bytes]) -> Attack:
    """Return an attack on the first message that a process of the job sends after its handshake."""

    def attack(target: Target) -> str:
        with relayed(target, lambda number, part: change(part) if number else part) as relay:
            connection = connect(relay.address, key=target.key, purpose=target.purpose, number=target.spare)
            connection.send(json.dumps(JOIN | {"size": [6, 3, 0]}).encode())
            return see(connection)

    return attack


insider("on the path: a changed byte")(_on_path(lambda part: part[:-2] + bytes([part[-2] ^ 1]) + part[-1:]))
insider("on the path: a message before the first")(
    _on_path(lambda part: struct.pack(">I", 2) + bytes(32) + b"{}" + part)
)


def _repeat_or_skip(*, repeat: bool) -> Attack:
    def attack(target: Target) -> str:
        held: list[bytes] = []

        def change(number: int, part: bytes) -> bytes:
            if number == 0:
                return part
            held.append(part)
            return part + held[0] if repeat else (b"" if len(held) == 1 else part)

        with relayed(target, change) as relay:
            connection = connect(relay.address, key=target.key, purpose=target.purpose, number=target.spare)
            with contextlib.suppress(OSError):
                for _ in range(3):
                    # One part each, so that the relay sees single frames.
                    payload = json.dumps({"kind": "Heartbeat"}).encode()
                    connection.socket.sendall(connection._writer.make_header(payload) + payload)
                    time.sleep(0.1)
            return see(connection)

    return attack


insider("on the path: a message repeated")(_repeat_or_skip(repeat=True))
insider("on the path: a message left out")(_repeat_or_skip(repeat=False))


@insider("as many connections as an outsider may not have", "the nodes went on")
def crowd(target: Target) -> str:
    connections = []
    with contextlib.suppress(RefusedError):
        connections = [enter(target) for _ in range(200)]
    outcome = say({"kind": "Stop", "number": 9})(target)
    for connection in connections:
        connection.close()
    return "the nodes went on" if outcome == DROPPED else outcome
