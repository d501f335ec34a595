"""Frames, handshakes and records between the processes of a job, and JSON and terminal text from anywhere."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

from ascend_cpt.cluster.job.records import Failure, Member, Value, Values
from ascend_cpt.cluster.launch.coordination.records import (
    FROM_COORDINATOR,
    FROM_LAUNCHER,
    Cancel,
    Decision,
    Ended,
    Go,
    Heartbeat,
    Join,
    Refused,
    Stop,
    StopBy,
    write_outcome,
)
from ascend_cpt.cluster.launch.coordination.restart_policy import End, Outcome
from ascend_cpt.cluster.messages.frames import FrameReader, FrameWriter, InvalidFrame
from ascend_cpt.cluster.messages.handshake import (
    ANSWER_BYTES,
    GREETING_BYTES,
    MAGIC,
    answer_greeting,
    check_answer,
    make_nonce,
)
from ascend_cpt.cluster.messages.records import InvalidRecord, decode, encode, read_record
from ascend_cpt.strict_json import MAX_DEPTH, JsonError, parse_json
from ascend_cpt.terminal_text import strip_controls
from tests.attacks.fuzz.harness import Prepared, Target
from tests.attacks.fuzz.mutate import mutate_bytes, mutate_json, one_of

KEY = b"\x05" * 32
PAYLOADS = (b"{}", b"x" * 500, b"", b'{"kind": "Heartbeat"}')
MAX_BYTES = 4096

OUTCOME = Outcome(end=End.FAILED, code=1, reason="rank 3 failed", lines=("line 1", "line 2"), step=12)
LAUNCHER_RECORDS = (
    Heartbeat(),
    Join(size=(4, 2), host="node-1", num_restarts=0, time_s=1.7e9, cause="lost the connection"),
    Stop(number=15),
    Ended(outcome=write_outcome(OUTCOME)),
    Ended(outcome=write_outcome(Outcome(end=End.DONE, code=0))),
)
COORDINATOR_RECORDS = (
    Go(warnings=("the clock differs",), cause="node 1 (x): worker 3 failed"),
    Cancel(reason="node 1: rank 3 failed", lines=("line 1",)),
    StopBy(number=2, by="node 1 (x)"),
    Refused(message="NODE_RANK 1 is taken"),
    Decision(again=True, code=1, delay_s=5.0, message="restart 1 of 2"),
)
JOB_RECORDS = (
    Value(topic="connection", value={"rank": 1, "node": 0, "host": "x"}),
    Value(topic="digest", value=["a", 1, None, {"b": 2.5}]),
    Failure(reason="bang", exit_code=2),
    Values(topic="digest", values=(1, "x", [True])),
)
KINDS = (*dict.fromkeys((*FROM_LAUNCHER, *FROM_COORDINATOR, Value, Failure, Values)),)


def prepare_frames(folder: Path) -> Prepared:
    writer = FrameWriter(KEY)
    stream = b"".join(writer.make_header(payload) + payload for payload in PAYLOADS)

    def run(case: bytes) -> None:
        for part_bytes in (len(case) or 1, 7) if len(case) % 8 == 0 else (len(case) or 1,):
            reader, received = FrameReader(KEY, MAX_BYTES), []
            try:
                for begin in range(0, len(case), part_bytes):
                    received += reader.feed(case[begin : begin + part_bytes])
                    assert len(reader._buffer) <= MAX_BYTES + 36 + part_bytes
            except InvalidFrame:
                pass
            # Whatever an attacker changes, only what was sent is received, in this order.
            assert received == list(PAYLOADS[: len(received)])

    return Prepared(seeds=[stream], mutate=mutate_bytes, run=run)


def prepare_handshake(folder: Path) -> Prepared:
    """A case has the changes (XOR) to a greeting and to the client's answer."""

    def apply(good: bytes, changes: bytes) -> bytes:
        return bytes(a ^ b for a, b in zip(good, changes.ljust(len(good), b"\0"), strict=False))

    def run(case: bytes) -> None:
        nonce = make_nonce()
        greeting = apply(MAGIC + nonce, case[:GREETING_BYTES])
        try:
            answer, client = answer_greeting(greeting, key=KEY, purpose="workers", number=3)
        except ValueError:
            assert any(case[: len(MAGIC)])
            return
        changes = case[GREETING_BYTES : GREETING_BYTES + ANSWER_BYTES]
        session = check_answer(apply(answer, changes), key=KEY, purpose="workers", server_nonce=nonce)
        assert (session is not None) == (not any(case[: GREETING_BYTES + ANSWER_BYTES]))
        assert session is None or session.prove("server") == client.prove("server")

    return Prepared(seeds=[bytes(GREETING_BYTES + ANSWER_BYTES)], mutate=mutate_bytes, run=run)


def prepare_records(folder: Path) -> Prepared:
    records = (*LAUNCHER_RECORDS, *COORDINATOR_RECORDS, *JOB_RECORDS)

    def run(case: bytes) -> None:
        try:
            record = decode(case, KINDS)
            if isinstance(record, Value):
                _check_texts(read_record(Member, record.value).host)
        except InvalidRecord:
            return
        if not isinstance(record, Value | Values):  # whose values may be anything
            for value in vars(record).values():
                _check_texts(value)
        if not isinstance(record, Ended):
            assert decode(encode(record), KINDS) == record or _has_nan(case)

    return Prepared(seeds=[encode(record) for record in records], mutate=mutate_json, run=run)


def _check_texts(value: Any) -> None:
    for text in value if isinstance(value, tuple) else (value,):
        if isinstance(text, str):
            text.encode()
            assert "\x1b" not in text and "\0" not in text


def _has_nan(case: bytes) -> bool:
    return b"NaN" in case or b"Infinity" in case or b"e" in case or b"E" in case or b"\\ud" in case or b"0" * 9 in case


def prepare_json(folder: Path) -> Prepared:
    sample = {"a": [1, -2.5, "é\n", None, True, {"b": [[{}]], "": '\\u0041"'}], "c": {"d": 2**40}}

    def run(case: bytes) -> None:
        try:
            value = parse_json(case, max_bytes=20_000)
        except JsonError as error:
            assert "\n" not in str(error)
            return
        assert json.loads(case) == value and _depth(value) <= MAX_DEPTH
        json.dumps(value, ensure_ascii=False).encode()

    seeds = [json.dumps(sample).encode(), b'"\\ud83d\\ude00"', b"[[[[]]]]", b" -0.5e-3 "]
    return Prepared(seeds=seeds, mutate=one_of(mutate_json, mutate_bytes), run=run)


def _depth(value: Any) -> int:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if children is None else 1 + max(map(_depth, children), default=0)


def prepare_terminal(folder: Path) -> Prepared:
    def run(case: bytes) -> None:
        text = strip_controls(case.decode("utf-8", "surrogateescape"))
        kinds = {unicodedata.category(character) for character in text if character not in "\n\t"}
        assert not kinds & {"Cc", "Cs"} and not set(text) & set("\u202a\u202b\u202d\u202e\u2066\u2067\u2068")

    seeds = [b"\x1b[31mred\x1b[0m line\r\n\x1b]0;title\x07x", "é\u202ex 答\x9b2J".encode(), b"\x1bP1;2q\x1b\\ plain"]
    return Prepared(seeds=seeds, mutate=mutate_bytes, run=run)


TARGETS = (
    Target(name="frames", num_cases=480_000, prepare=prepare_frames),
    Target(name="handshake", num_cases=250_000, prepare=prepare_handshake),
    Target(name="records", num_cases=60_000, prepare=prepare_records),
    Target(name="json", num_cases=50_000, prepare=prepare_json),
    Target(name="terminal", num_cases=100_000, prepare=prepare_terminal),
)
