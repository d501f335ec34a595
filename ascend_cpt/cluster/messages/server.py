"""A listening socket and its connections, polled by one thread. Peers count only once they have proved the secret.

A connection from outside the job can hold at most one of MAX_UNPROVED places, and a few bytes, for HANDSHAKE_S. Sends
are queued per peer, so a slow peer does not delay the others.
"""

from __future__ import annotations

import contextlib
import resource
import selectors
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ascend_cpt.cluster.messages.address import format_peer, listen
from ascend_cpt.cluster.messages.connection import MAX_MESSAGE_BYTES
from ascend_cpt.cluster.messages.frames import hash_payload
from ascend_cpt.cluster.messages.peer import Peer

MAX_UNPROVED = 256
HANDSHAKE_S = 10.0
# A peer that reads no queued messages for this long, or has more than this much queued, is dropped.
STALL_S = 45.0
MAX_UNSENT_MESSAGES = 4
# Small, so that the answers of waiting connections are read before new connections replace them.
ACCEPTS_PER_POLL = 16
# Without free file descriptors a pending connection would be reported again and again.
ACCEPT_PAUSE_S = 0.5
SPARE_DESCRIPTORS = 512


@dataclass(kw_only=True)
class Refusals:
    """The number of connections that ended without a proof, and where the last one came from."""

    count: int = 0
    last_host: str = ""


class Server:
    """Accepts the processes of a job that know its key."""

    def __init__(
        self,
        address: tuple[str, int],
        *,
        key: bytes,
        purpose: str,
        size: int,
        accepts: Callable[[int], bool] = lambda number: True,
        max_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        """Listen on one address.

        Args:
            address: Host and port.
            key: The job's key for this purpose.
            purpose: Name of the server. Clients must use the same one.
            size: The number of peers expected.
            accepts: Whether a peer that proved the key may have this number.
            max_bytes: Maximum size of a message from a peer.

        Raises:
            OSError: when the address cannot be bound.
        """
        _allow_descriptors(size + MAX_UNPROVED + SPARE_DESCRIPTORS)
        self._listener = listen(*address, backlog=max(1024, size))
        self._key, self._purpose, self._accepts, self._max_bytes = key, purpose, accepts, max_bytes
        self._selector = selectors.DefaultSelector()
        self._is_accepting = False
        self._accept_after_s = 0.0
        self._is_closed_to_new = False
        self._unproved: dict[Peer, None] = {}  # in the order of arrival
        self.peers: dict[Peer, None] = {}
        self.refusals = Refusals()
        self._resume_accepting()

    def poll(self, timeout_s: float) -> Iterator[tuple[Peer, list[bytes] | None]]:
        """Yield each peer with [] if it has just proved the key, its messages, or None if its connection ended.

        Peers that the caller drops during the iteration are skipped. A peer reported with None is already dropped.
        """
        ready = self._selector.select(timeout_s)
        for key, events in ready:
            peer = key.data
            if peer not in self._unproved and peer not in self.peers:
                continue
            if events & selectors.EVENT_WRITE:
                peer.flush()
                self._watch(peer)
            if events & selectors.EVENT_READ:
                yield from self._read(peer)
        if any(key.data is None for key, _ in ready):
            self._accept()
        yield from self._drop_late()
        if not self._is_accepting and not self._is_closed_to_new and time.monotonic() > self._accept_after_s:
            self._resume_accepting()

    def send(self, peer: Peer, payload: bytes) -> None:
        """Queue a message for a peer. Never blocks."""
        self._send([peer], payload)

    def send_all(self, payload: bytes) -> None:
        """Queue a message for all peers that have proved the key. Never blocks."""
        self._send(list(self.peers), payload)

    def _send(self, peers: list[Peer], payload: bytes) -> None:
        payload_hash = hash_payload(payload)
        for peer in peers:
            if peer in self.peers:
                peer.send(payload, payload_hash)
                self._watch(peer)

    def drop(self, peer: Peer) -> None:
        """Close and forget a peer."""
        if peer in self._unproved:
            del self._unproved[peer]
        elif peer in self.peers:
            del self.peers[peer]
        else:
            return
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(peer.socket)
        peer.close()

    def close_to_new(self) -> None:
        """Stop listening, and drop all peers that have proved nothing."""
        self._is_closed_to_new = True
        self._pause_accepting(0.0)
        self._listener.close()
        for peer in list(self._unproved):
            self.drop(peer)

    def close(self) -> None:
        """Drop all peers and stop listening."""
        self.close_to_new()
        for peer in list(self.peers):
            self.drop(peer)
        self._selector.close()

    def _accept(self) -> None:
        for _ in range(ACCEPTS_PER_POLL):
            try:
                connected, address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionError):
                return
            except OSError:
                # No descriptor or memory is left, so make room. The job's processes will try again.
                for peer in list(self._unproved):
                    self._refuse(peer)
                self._pause_accepting(ACCEPT_PAUSE_S)
                return
            try:
                peer = Peer(connected, format_peer(address))
                peer.greet()
                self._selector.register(connected, selectors.EVENT_READ, peer)
            except OSError:
                connected.close()
                continue
            if len(self._unproved) >= MAX_UNPROVED:
                self._make_place()
            self._unproved[peer] = None

    def _make_place(self) -> None:
        """Refuse the oldest connection from the host with the most, so that one host cannot keep out the others."""
        counts = Counter(peer.host for peer in self._unproved)
        busiest = max(counts, key=lambda host: counts[host])
        self._refuse(next(peer for peer in self._unproved if peer.host == busiest))

    def _read(self, peer: Peer) -> Iterator[tuple[Peer, list[bytes] | None]]:
        try:
            if peer in self._unproved:
                if session := peer.receive_answer(self._key, self._purpose):
                    if not self._accepts(session.number):
                        raise ConnectionError("a number that is not accepted")
                    del self._unproved[peer]
                    self.peers[peer] = None
                    peer.admit(session, self._max_bytes)
                    self._watch(peer)
                    yield peer, []
            elif peer in self.peers and (payloads := peer.receive()):
                yield peer, payloads
        except ConnectionError:
            if peer in self._unproved:
                self._refuse(peer)
            else:
                self.drop(peer)
                yield peer, None

    def _drop_late(self) -> Iterator[tuple[Peer, None]]:
        now_s = time.monotonic()
        for peer in [peer for peer in self._unproved if now_s - peer.accepted_s > HANDSHAKE_S]:
            self._refuse(peer)
        most_bytes = MAX_UNSENT_MESSAGES * self._max_bytes
        for peer in list(self.peers):
            if peer.unsent_bytes > most_bytes or (peer.unsent_bytes and now_s - peer.sent_s > STALL_S):
                self.drop(peer)
                yield peer, None

    def _refuse(self, peer: Peer) -> None:
        self.refusals.count += 1
        self.refusals.last_host = peer.host
        self.drop(peer)

    def _watch(self, peer: Peer) -> None:
        """Wait for a peer to take more only while something is queued for it."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.unsent_bytes else 0)
        if self._selector.get_key(peer.socket).events != events:
            self._selector.modify(peer.socket, events, peer)

    def _pause_accepting(self, pause_s: float) -> None:
        if self._is_accepting:
            self._selector.unregister(self._listener)
            self._is_accepting = False
        self._accept_after_s = time.monotonic() + pause_s

    def _resume_accepting(self) -> None:
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._is_accepting = True


def _allow_descriptors(needed: int) -> None:
    """Raise this process's open-file limit to what a large job needs, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
