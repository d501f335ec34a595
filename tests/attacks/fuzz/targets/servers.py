"""The coordinator and the job channel: what a peer that knows the secret may send."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ascend_cpt.cluster.job.gather_server import GatherServer
from ascend_cpt.cluster.launch.arguments import REPO_ROOT, parse_launch
from ascend_cpt.cluster.launch.coordination import coordinator as coordinator_module
from ascend_cpt.cluster.launch.coordination.coordinator import Coordinator
from ascend_cpt.cluster.launch.coordination.restart_policy import RestartPolicy
from ascend_cpt.cluster.messages.frames import FrameWriter
from ascend_cpt.cluster.messages.handshake import GREETING_BYTES, answer_greeting
from ascend_cpt.cluster.messages.records import encode
from ascend_cpt.cluster.messages.secret import LAUNCHERS, WORKERS
from tests.attacks.fuzz.harness import Prepared, Target
from tests.attacks.fuzz.mutate import by_lines, mutate_json, one_of
from tests.attacks.fuzz.targets.messages import COORDINATOR_RECORDS, JOB_RECORDS, KEY, LAUNCHER_RECORDS
from tests.ports import find_free_port


class Caller:
    """A connection to a server that is polled by the same thread."""

    def __init__(self, port: int, number: int, purpose: str, poll: Callable[[], None]) -> None:
        self._poll = poll
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=5)
        # Closed with a reset, so that no port is left waiting.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        poll()
        greeting = self.socket.recv(GREETING_BYTES)
        answer, session = answer_greeting(greeting, key=KEY, purpose=purpose, number=number)
        self._writer = FrameWriter(session.frame_key("client"))
        self.socket.sendall(answer)
        poll()

    def say(self, payload: bytes) -> None:
        self.socket.sendall(self._writer.make_header(payload) + payload)
        self._poll()

    def close(self) -> None:
        self.socket.close()
        self._poll()


def talk(port: int, purpose: str, poll: Callable[[], None], case: bytes) -> None:
    """Say the lines of a case, each as a message; the first byte is the number of the peer."""
    number, _, speech = case.partition(b"\n")
    caller = Caller(port, int((number[:1].isdigit() and number[:1]) or b"9"), purpose, poll)
    try:
        for line in speech.split(b"\n")[:6]:
            caller.say(line)
    except OSError:
        pass  # dropped
    finally:
        caller.close()


def prepare_coordinator(folder: Path) -> Prepared:
    port = find_free_port()
    coordinator_module.POLL_S = 0.0  # what a caller sends is there at once
    settings = parse_launch(["run_cpt.py", "4", "2", "127.0.0.1", str(port), "0", "--max-restarts", "2"], {}, REPO_ROOT)
    settings = replace(settings, cluster_timeout_s=1000)

    def run(case: bytes) -> None:
        coordinator = Coordinator(settings, RestartPolicy(2, 0), KEY)
        try:
            talk(settings.launcher_port, LAUNCHERS, coordinator._serve_once, case)
            assert not coordinator._num_errors and coordinator.failure is None
        finally:
            coordinator._server.close()

    said = [encode(record) for record in (*LAUNCHER_RECORDS, *COORDINATOR_RECORDS)]
    join, end = said[1], said[3]
    seeds = [
        b"\n".join([b"1", join, end, join]),
        b"\n".join([b"0", join, said[2], said[0]]),
        b"\n".join([b"1", *said[5:]]),
    ]
    return Prepared(seeds=seeds, mutate=by_lines(mutate_line), run=run)


def mutate_line(random: object, line: bytes) -> bytes:
    """Change a message, but not often the number of the peer."""
    return line if line.isdigit() else mutate_json(random, line)  # type: ignore[arg-type]


def prepare_channel(folder: Path) -> Prepared:
    port = find_free_port()

    def run(case: bytes) -> None:
        server = GatherServer(2, ("127.0.0.1", port), KEY)

        def poll() -> None:
            for peer, payloads in server._server.poll(0.0):
                server._read(peer, payloads)

        try:
            talk(port, WORKERS, poll, case)
            assert set(server._members) <= {0, 1}
        finally:
            server._server.close()

    hello, *said = (encode(record) for record in JOB_RECORDS)
    seeds = [b"\n".join([b"1", hello, *said]), b"\n".join([b"1", hello, said[0], said[0]]), b"\n".join([b"1", said[1]])]
    return Prepared(seeds=seeds, mutate=one_of(by_lines(mutate_line)), run=run)


TARGETS = (
    Target(name="coordinator", num_cases=5_000, prepare=prepare_coordinator),
    Target(name="channel", num_cases=5_000, prepare=prepare_channel),
)
