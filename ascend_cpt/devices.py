"""The accelerators that are known by name, and their peak speed."""

from __future__ import annotations

# Dense BF16 peak of the matrix units, FLOP/s of one device, by the name that the driver gives. It is cores × FLOPs of a
# core in a cycle (8192: 16 × 16 × 16 multiply-adds) × clock of CANN's `platform_config/<name>.ini`, for the B2
# 24 × 8192 × 1.8 GHz, and what torchtitan-npu (github.com/Ascend) takes for MFU. Data sheets give a little more
# (400, 376, 313 and 280 TFLOPS for B1 to B4): they add the vector units, which no matrix product uses.
PEAK_FLOPS = {
    "Ascend910B1": 373.88e12,
    "Ascend910B2": 353.8944e12,
    "Ascend910B3": 294.912e12,
    "Ascend910B4": 245.76e12,
    "Ascend910B4-1": 245.76e12,
    "Ascend910_9362": 353.8944e12,
    "Ascend910_9392": 353.8944e12,
}


def find_peak_flops(device_name: str) -> float | None:
    """Return the peak of a device by its exact name, or None for one that is not in the table: never a guess."""
    return PEAK_FLOPS.get(device_name)
