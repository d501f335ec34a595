"""The fitted part of the time model: the fractions of a machine's peak rates that a run reaches, and fixed times."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """Achieved fractions of the peak rates, and overheads."""

    matmul: float
    attention: float
    exchange: float
    """Fraction of the link bandwidth; the rest is latency."""
    activation_passes: float
    """Number of times that elementwise operators read or write a layer's activations in forward."""
    layer_s: float
    """Fixed time of a layer in forward, for launching its kernels."""
    step_s: float
    """Fixed time of a step: its launch, the host's part, the optimizer's many small kernels."""
    data_hidden: float
    """Fraction of the exchange between data-parallel ranks that computation can hide, 0 to 1."""
    tensor_hidden: float
    """The same between tensor-parallel ranks where the case overlaps it (`overlaps_exchange`), 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class ErrorBand:
    """The model's errors on figures to which it was not fitted, as fractions of each figure."""

    median: float
    """Median of the absolute errors."""
    high: float
    """Absolute error that 9 of 10 figures stay below."""
    num_figures: int
    source: str
    """Where the figures come from, for the report."""

    def describe(self) -> str:
        """Return the band as text."""
        return (
            f"±{self.median:.0%} (half of {self.num_figures} {self.source} figures are closer; 9 of 10 within "
            f"±{self.high:.0%})"
        )
