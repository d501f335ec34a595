"""Chooses the launchers that run an attempt: spares replace lost nodes, or the job continues on fewer nodes.

A launcher has a number, its NODE_RANK, for the whole job. The members are the launchers that run the nodes of an
attempt; the position of a member is the node rank given to msrun. All other launchers are spares. Node 0 is always the
member at position 0, because it runs the coordinator and MindSpore's scheduler.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace

# A launcher that loses its connection ends its workers within this time (supervisor.py: 5 s after SIGTERM, then
# SIGKILL). Another node takes over the rank only later, so that no two workers write the same files.
FENCE_S = 10.0


@dataclass(frozen=True, kw_only=True)
class _Absence:
    """Why a member cannot take part, and from when on it can be replaced or left out."""

    text: str
    replace_at_s: float
    leave_out_at_s: float


class Placement:
    """The members of a job, and who may take the place of whom.

    Args:
        num_nodes: Nodes of the job.
        num_spares: Launchers beyond these.
        min_nodes: The job may continue on this number of nodes; 0: only on all.
        lost_timeout_s: Time for a lost node to return before the job continues on fewer nodes.
        now_s: Start of the job, on the clock of all other times.
        hosts: Number → host name of the launchers that have joined so far. The caller updates it.
    """

    def __init__(
        self,
        *,
        num_nodes: int,
        num_spares: int,
        min_nodes: int,
        lost_timeout_s: float,
        now_s: float,
        hosts: Mapping[int, str],
    ) -> None:
        self._num_nodes, self._num_spares, self._min_nodes = num_nodes, num_spares, min_nodes
        self._lost_timeout_s, self._hosts = lost_timeout_s, hosts
        self.members = tuple(range(num_nodes))
        self.reason = ""
        """Why the members of the last `choose` differ from the ones before; empty if they are the same."""
        never = _Absence(
            text=f"did not connect within {lost_timeout_s:g} s",
            replace_at_s=now_s + lost_timeout_s,
            leave_out_at_s=math.inf,
        )
        self._absent: dict[int, _Absence] = dict.fromkeys(range(num_nodes), never)
        self._excluded: set[int] = set()

    def allow_leaving_out(self) -> None:
        """Record that the job started before: a node that has not connected to this node 0 counts as lost."""
        for number, absence in self._absent.items():
            if absence.leave_out_at_s == math.inf:
                self._absent[number] = replace(absence, leave_out_at_s=absence.replace_at_s)

    def accepts(self, number: int) -> bool:
        """Return whether the job has a launcher of this number."""
        return 0 <= number < self._num_nodes + self._num_spares

    def name(self, number: int) -> str:
        """Return the launcher's number with its host name, if known."""
        return f"node {number} ({self._hosts[number]})" if number in self._hosts else f"node {number}"

    def arrive(self, number: int) -> None:
        """Record that a launcher has joined."""
        if number not in self._excluded:
            self._absent.pop(number, None)

    def lose(self, number: int, *, now_s: float, reason: str, silent_s: float = 0.0) -> None:
        """Record a lost connection. `silent_s`: how much later than this side the launcher may notice."""
        self._excluded.discard(number)
        replace_at_s = now_s + silent_s + FENCE_S
        self._absent[number] = _Absence(
            text=f"was lost: {reason}",
            replace_at_s=replace_at_s,
            leave_out_at_s=max(replace_at_s, now_s + self._lost_timeout_s),
        )

    def exclude(self, number: int, *, now_s: float, reason: str) -> None:
        """Do not use a launcher until it has disconnected and joined again."""
        self._excluded.add(number)
        text = f"is no longer used: {reason}"
        self._absent[number] = _Absence(text=text, replace_at_s=now_s, leave_out_at_s=now_s)

    def can_lose(self, numbers: Set[int], connected: Set[int], fitting: Set[int] | None) -> bool:
        """Return whether the job can continue without these members.

        Args:
            numbers: The members.
            connected: The other launchers that are connected.
            fitting: As in `choose`.
        """
        left = connected - numbers - self._excluded
        return 0 in left and (len(left) >= self._num_nodes or self._find_size(len(left), fitting) is not None)

    def explain_waiting(self, joined: Set[int], fitting: Set[int] | None) -> str:
        """Return the end of the message about nodes that did not return: why the job does not continue without them."""
        usable = joined - self._excluded
        if not 0 < self._min_nodes <= len(usable) or self._find_size(len(usable), fitting):
            return ""
        return f"; the run does not fit on the remaining nodes ({len(usable)}; --min-nodes {self._min_nodes})"

    def choose(self, joined: Set[int], *, now_s: float, fitting: Set[int] | None = None) -> tuple[int, ...] | None:
        """Return the members of the next attempt in order of rank, or None to wait for launchers.

        Args:
            joined: The launchers that are ready.
            now_s: The current time.
            fitting: The numbers of nodes, below the full one, that fit the run; None if unknown.
        """
        usable = joined - self._excluded
        missing = [number for number in self.members if number not in usable]
        if 0 in missing or not all(number in self._absent for number in missing):
            return None
        spares = sorted(usable - set(self.members))
        absences = [self._absent[number] for number in missing]
        if len(spares) >= len(missing):
            times_s = [absence.replace_at_s for absence in absences]
        else:
            times_s = [absence.leave_out_at_s for absence in absences]
        if any(now_s < time_s for time_s in times_s):
            return None
        size = self._find_size(len(usable), fitting)
        if size is None:
            return None
        substitutes = dict(zip(missing, spares, strict=False))
        kept = [substitutes.get(number, number) for number in self.members]
        rest = [number for number in spares if number not in kept]
        chosen = tuple([number for number in kept if number in usable] + rest)[:size]
        self.reason = self._describe(chosen, missing)
        self.members = chosen
        return chosen

    def _find_size(self, available: int, fitting: Set[int] | None) -> int | None:
        """Return the largest possible number of nodes, or None if there is none."""
        if available >= self._num_nodes:
            return self._num_nodes
        sizes = range(available, self._min_nodes - 1, -1) if self._min_nodes else ()
        return next((size for size in sizes if fitting is None or size in fitting), None)

    def _describe(self, chosen: tuple[int, ...], missing: list[int]) -> str:
        """Describe how the members change."""
        if set(chosen) == set(self.members):
            return ""
        parts = [f"{self.name(number)} {self._absent[number].text}" for number in missing]
        replaced = dict(zip(missing, (n for n in chosen if n not in self.members), strict=False))
        for number, spare in replaced.items():
            place = "its place" if len(missing) == 1 else f"the place of node {number}"
            parts.append(f"{self.name(spare)}, a spare, takes {place}")
        joining = [number for number in chosen if number not in self.members and number not in replaced.values()]
        if joining:
            parts.append(f"{' and '.join(map(self.name, joining))} {'join' if len(joining) > 1 else 'joins'}")
        if len(chosen) != len(self.members):
            parts.append(f"the job continues on {len(chosen)} of {self._num_nodes} nodes")
        return "; ".join(parts)
