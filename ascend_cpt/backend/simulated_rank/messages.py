"""The input and output files for the process that simulates a rank."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Job:
    """Input of the process."""

    yaml_path: str
    result_path: str
    num_steps: int
    uses_cann: bool
    parent_pid: int
    loss_chunks: int = 1
    frozen: list[str] = field(default_factory=list)
    """Weights that are not trained, without those frozen for adapters."""
    lora: dict[str, Any] = field(default_factory=dict)
    """Settings of the adapters; empty without adapters."""


@dataclass(frozen=True, kw_only=True)
class ParameterOnRank:
    """A parameter as MindSpore shards it for one rank. Shapes are in elements."""

    name: str
    shape: list[int]
    tensor_shape: list[int]
    """After tensor parallel."""
    stored_shape: list[int]
    """After tensor parallel and optimizer sharding."""


@dataclass(frozen=True, kw_only=True)
class RankOutcome:
    """Output of the process: its findings or its error."""

    parameters: list[ParameterOnRank] = field(default_factory=list)
    num_steps: int = 0
    peak_bytes: int = 0
    """Peak memory that MindSpore allocated on the simulated device."""
    host_bytes: int = 0
    """Peak resident memory of the process."""
    compile_s: float = 0.0
    """Seconds until the first step ended, without imports and building the network."""
    compile_cpu_s: float = 0.0
    """CPU seconds of all threads in this time."""
    error: str = ""
