"""How two processes of a job prove to each other that they know its key, before any message is read.

    server → client   greeting: MAGIC, server's nonce
    client → server   MAGIC, number of the client, client's nonce, proof(client)
    server → client   proof(server)

A proof is an HMAC-SHA256 over the role, the connection's purpose, the client's number and both nonces. All parts have
a fixed size, so data from unauthenticated processes needs no parsing and only bounded memory. Both sides derive the
keys for later frames from the same values, so every message depends on the handshake.
"""

from __future__ import annotations

import hmac
import secrets
import struct
from dataclasses import dataclass

# The last byte is the version of the protocol.
MAGIC = b"ASCPT\x00\x00\x02"
NONCE_BYTES = 32
PROOF_BYTES = 32
GREETING_BYTES = len(MAGIC) + NONCE_BYTES
_ANSWER = struct.Struct(f">{len(MAGIC)}sI{NONCE_BYTES}s{PROOF_BYTES}s")
ANSWER_BYTES = _ANSWER.size


@dataclass(frozen=True, kw_only=True, repr=False)
class Session:
    """The values that both sides know after the handshake. `number` is the client's node or rank."""

    key: bytes
    purpose: str
    number: int
    server_nonce: bytes
    client_nonce: bytes

    def prove(self, role: str) -> bytes:
        """Return the proof of `role`: "client" or "server"."""
        return self._digest(f"proof of the {role}")

    def frame_key(self, sender: str) -> bytes:
        """Return the key for frames sent by `sender` ("client" or "server")."""
        return self._digest(f"frames of the {sender}")

    def _digest(self, label: str) -> bytes:
        words = f"{label}\0{self.purpose}\0{self.number}\0".encode()
        return hmac.digest(self.key, words + self.server_nonce + self.client_nonce, "sha256")


def make_nonce() -> bytes:
    """Return a new random nonce."""
    return secrets.token_bytes(NONCE_BYTES)


def answer_greeting(greeting: bytes, *, key: bytes, purpose: str, number: int) -> tuple[bytes, Session]:
    """Return the client's answer to a greeting of GREETING_BYTES, and the session.

    Raises:
        ValueError: when the greeting does not belong to this protocol.
    """
    if not greeting.startswith(MAGIC):
        raise ValueError("another program or another version listens there")
    nonce = make_nonce()
    session = Session(key=key, purpose=purpose, number=number, server_nonce=greeting[len(MAGIC) :], client_nonce=nonce)
    return _ANSWER.pack(MAGIC, number, nonce, session.prove("client")), session


def check_answer(answer: bytes, *, key: bytes, purpose: str, server_nonce: bytes) -> Session | None:
    """Return the session for a client's answer of ANSWER_BYTES, or None if its proof is wrong."""
    magic, number, client_nonce, proof = _ANSWER.unpack(answer)
    session = Session(key=key, purpose=purpose, number=number, server_nonce=server_nonce, client_nonce=client_nonce)
    is_right = hmac.compare_digest(proof, session.prove("client"))
    return session if is_right and magic == MAGIC else None
