"""Receives the coordinator's messages in a thread, and shows the coordinator that this launcher is running."""

from __future__ import annotations

import queue
import threading
import time

from ascend_cpt.cluster.launch.coordination.records import FROM_COORDINATOR, FromCoordinator, Heartbeat
from ascend_cpt.cluster.messages.connection import Connection
from ascend_cpt.cluster.messages.ports import HEARTBEAT_S, HEARTBEAT_TIMEOUT_S
from ascend_cpt.cluster.messages.records import InvalidRecord, decode, encode


class Lost:
    """Stands in for a message when the connection is lost."""


Received = FromCoordinator | Lost


class Receiver(threading.Thread):
    """Receives the coordinator's messages and sends heartbeats independently of the main thread."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(daemon=True, name="connection to node 0")
        self.connection = connection
        self.messages: queue.SimpleQueue[Received] = queue.SimpleQueue()
        connection.socket.settimeout(HEARTBEAT_S)

    def run(self) -> None:
        """Receive until the connection is lost, whatever the reason."""
        try:
            self._receive()
        finally:
            self.messages.put(Lost())

    def _receive(self) -> None:
        last_received_s = time.monotonic()
        while (payloads := self.connection.receive()) is not None:
            now_s = time.monotonic()
            if payloads:
                last_received_s = now_s
            elif now_s - last_received_s > HEARTBEAT_TIMEOUT_S:
                return
            self.connection.send(encode(Heartbeat()))
            try:
                messages = [decode(payload, FROM_COORDINATOR) for payload in payloads]
            except InvalidRecord:
                return
            for message in messages:
                if not isinstance(message, Heartbeat):
                    self.messages.put(message)

    def close(self) -> None:
        self.connection.close()
