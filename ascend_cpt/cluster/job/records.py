"""The job channel's messages. The rank comes from the handshake, so no process can send for another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from ascend_cpt.cluster.messages.records import anything, several, text, whole

MAX_RANKS = 1 << 24


@dataclass(frozen=True, kw_only=True)
class Member:
    """A process of the job. `node` is the node rank, `host` its host name."""

    rank: Annotated[int, whole(0, MAX_RANKS)]
    node: Annotated[int, whole(0, MAX_RANKS)]
    host: Annotated[str, text(255)]

    def __str__(self) -> str:
        return f"node {self.node} ({self.host})"


@dataclass(frozen=True, kw_only=True)
class Value:
    """One process's value for an all_gather."""

    topic: Annotated[str, text(200)]
    value: Annotated[Any, anything]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A process failed, so the others must exit too, and never with exit code 0."""

    reason: Annotated[str, text(100_000)]
    exit_code: Annotated[int, whole(1, 255)]


@dataclass(frozen=True, kw_only=True)
class Values:
    """All processes' values for an all_gather, in rank order."""

    topic: Annotated[str, text(200)]
    values: Annotated[tuple[Any, ...], several(anything, MAX_RANKS)]
