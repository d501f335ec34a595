"""Peak compute of known accelerators."""

from __future__ import annotations

# Dense BF16 peak of the matrix units, FLOP/s of one device, by the driver's device name: cores × FLOPs per core
# and cycle (8192: 16 × 16 × 16 multiply-adds) × clock from CANN's `platform_config/<name>.ini`, for the B2
# 24 × 8192 × 1.8 GHz. torchtitan-npu (github.com/Ascend) uses the same values for MFU. Data sheets give slightly more
# (400, 376, 313 and 280 TFLOPS for B1 to B4) because they include the vector units, unused by matrix products.
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
    """Return a device's peak by its exact name, or None if the device is not in the table."""
    return PEAK_FLOPS.get(device_name)
