"""The record of the time to the first step of a launch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class StartRecord:
    """Time from the start of the process to the end of the first step of a launch, in parts (seconds)."""

    step: int
    """The first step of the launch."""
    total_s: float
    """Sum of the parts."""
    import_s: float
    """Importing packages, opening the device, and connecting to the other processes."""
    data_s: float
    """Reading and checking configuration, datasets and checkpoints, with their checksums."""
    weights_s: float
    """Building the network and loading the weights. With several devices MindFormers may compile here."""
    validation_s: float
    """Validation before the first step, with the compilation of its graph, and waiting for the first batch."""
    compile_s: float
    """The first step: compilation, or loading from the compile cache, and the step itself."""
