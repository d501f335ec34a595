"""Times a matrix product on this rank's own device. Ranks wait for each other, so step times alone do not differ."""

from __future__ import annotations

import time

import numpy as np
from mindspore import Tensor, mint

from ascend_cpt.backend.collectives import is_on_cpu

SIZES = (128, 256, 512, 1024, 2048, 4096)
LONG_ENOUGH_S = 0.002


class SpeedProbe:
    """Multiplies two square float32 matrices without communication, on a CPU only."""

    def __init__(self) -> None:
        self._matrix: Tensor | None = None

    def find_size(self) -> int:
        """Return the smallest of `SIZES` that takes `LONG_ENOUGH_S`, else the largest; 0 (no probe) on an NPU."""
        if not is_on_cpu():
            return 0  # the software NPU has no aclnnMatmul outside a graph, so it could not be tried
        for size in SIZES:
            self.set_size(size)
            if self.measure() >= LONG_ENOUGH_S:
                return size
        return SIZES[-1]

    def set_size(self, size: int) -> None:
        """Allocate the matrix (`size` × `size`) and run the product once, so that `measure` includes no compilation.

        With a size of 0 nothing is measured.
        """
        if not size:
            return
        self._matrix = Tensor(np.full((size, size), 1 / size, np.float32))
        self.measure()

    def measure(self) -> float:
        """Return the time of the product in seconds, or 0 without a matrix."""
        if self._matrix is None:
            return 0.0
        start_s = time.perf_counter()
        # Reading a value waits for the device.
        mint.matmul(self._matrix, self._matrix)[0, 0].asnumpy()
        return time.perf_counter() - start_s
