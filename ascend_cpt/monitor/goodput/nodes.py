"""The nodes of a run's launches, in a job that can continue without lost nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ascend_cpt.config.values import format_number, format_rows


@dataclass(frozen=True, kw_only=True)
class NodesRecord:
    """The nodes of a launch that starts after `step` steps."""

    step: int
    attempt: int
    """Counted from 1 since the start of the launcher."""
    num_nodes: int
    of_nodes: int
    """Nodes that the job was started on."""
    hosts: list[str]
    """Host names in order of rank."""
    num_devices: int
    data_parallel: int
    micro_batch_size: int
    """Rows."""
    num_accumulation_steps: int
    reason: str = ""
    """Why the nodes differ from those of the previous launch; empty if they are the same."""


def describe_node_changes(records: Sequence[Mapping[str, Any]]) -> str:
    """Describe how the nodes changed in the course of a run. Return "" if they did not."""
    return "; ".join(
        f"step {record['step']}: {record['reason']} ({format_number(record['num_devices'], 'device')}, "
        f"{format_rows(record['micro_batch_size'])} × {record['num_accumulation_steps']} per data-parallel rank)"
        for record in records
        if record.get("reason")
    )
