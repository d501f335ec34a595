"""What is passed between the command and the process that simulates a rank."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one process compiles."""

    yaml_path: str
    result_path: str
    num_steps: int
    uses_cann: bool
    parent_pid: int


@dataclass(frozen=True, kw_only=True)
class ParameterOnRank:
    """A parameter as MindSpore cut it for a rank. Shapes are in elements."""

    name: str
    shape: list[int]
    tensor_shape: list[int]
    """After tensor parallel."""
    stored_shape: list[int]
    """After the optimizer's sharding as well."""


@dataclass(frozen=True, kw_only=True)
class RankOutcome:
    """What a process found, or the error that it met."""

    parameters: list[ParameterOnRank] = field(default_factory=list)
    num_steps: int = 0
    peak_bytes: int = 0
    """Largest sum of what MindSpore had allocated on the simulated device."""
    host_bytes: int = 0
    """Largest resident memory of the process."""
    error: str = ""
