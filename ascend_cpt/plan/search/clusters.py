"""Searches over node counts for the cheapest cluster, the smallest to meet a deadline, or the smallest that fits."""

from __future__ import annotations

from collections.abc import Iterator

from ascend_cpt.plan.estimate import Estimate
from ascend_cpt.plan.search.search import Accepts, estimate_as, find_fastest
from ascend_cpt.plan.search.table import count_device_hours

NODE_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


def list_by_nodes(plan: Estimate, accepts: Accepts, *, min_nodes: int = 1, max_nodes: int) -> Iterator[Estimate]:
    """Yield the fastest plan for each node count on which a layout fits, in ascending order."""
    counts = sorted({*NODE_COUNTS, max_nodes})
    for nodes in counts:
        if min_nodes <= nodes <= max_nodes:
            yield from find_on(plan, accepts, nodes, max_layouts=1)


def find_on(plan: Estimate, accepts: Accepts, nodes: int, *, max_layouts: int) -> list[Estimate]:
    """Return the fastest plans on this number of nodes, fastest first."""
    cases = find_fastest(
        plan.case,
        plan.machine,
        plan.limits,
        world_size=nodes * plan.machine.devices_per_node,
        max_layouts=max_layouts,
        accepts=accepts,
    )
    return [estimate_as(plan, case) for case in cases]


def find_smallest(plan: Estimate, accepts: Accepts, *, more_than: int) -> int | None:
    """Return the smallest node count above `more_than` on which a layout fits, or None if none up to 128 does."""
    larger = list_by_nodes(plan, accepts, min_nodes=more_than + 1, max_nodes=NODE_COUNTS[-1])
    found = next(larger, None)
    return None if found is None else found.case.layout.world_size // plan.machine.devices_per_node


def find_cheapest(plan: Estimate, accepts: Accepts, *, max_nodes: int, days: float | None) -> list[Estimate]:
    """Return the plans on up to `max_nodes` nodes that meet the deadline, sorted by device hours."""
    found = [
        candidate
        for candidate in list_by_nodes(plan, accepts, max_nodes=max_nodes)
        if days is None or (candidate.days is not None and candidate.days <= days)
    ]
    return sorted(found, key=lambda candidate: count_device_hours(candidate) or 0.0)


def find_within(plan: Estimate, accepts: Accepts, *, max_nodes: int, days: float) -> list[Estimate]:
    """Return the plans on the smallest number of nodes that finishes within `days`, fastest first."""
    for candidate in list_by_nodes(plan, accepts, max_nodes=max_nodes):
        if candidate.days is not None and candidate.days <= days:
            nodes = candidate.case.layout.world_size // plan.machine.devices_per_node
            found = find_on(plan, accepts, nodes, max_layouts=10)
            return [other for other in found if other.days is not None and other.days <= days]
    return []
