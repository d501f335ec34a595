"""Times a matrix product on this rank's NPU. Ranks wait for each other, so their step times do not differ."""

from __future__ import annotations

import time

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint

SIZES = (128, 256, 512, 1024, 2048, 4096)
LONG_ENOUGH_S = 0.002


class DeviceSpeed:
    """Multiplies two square bfloat16 matrices without communication."""

    def __init__(self) -> None:
        self._matrix: Tensor | None = None

    def find_size(self) -> int:
        """Return the smallest of `SIZES` whose product takes `LONG_ENOUGH_S`, else the largest."""
        for size in SIZES:
            self.set_size(size)
            if self.measure()[0] >= LONG_ENOUGH_S:
                return size
        return SIZES[-1]

    def set_size(self, size: int) -> None:
        """Allocate the matrix (`size` × `size`) and run the product once, so that `measure` includes no preparation."""
        self._matrix = Tensor(np.full((size, size), 1 / size, np.float32), ms.bfloat16)
        self.measure()

    def measure(self) -> tuple[float, float]:
        """Return the time of the product in seconds twice, since it is also the cost; (0, 0) without a matrix."""
        if self._matrix is None:
            return 0.0, 0.0
        start_s = time.perf_counter()
        mint.mm(self._matrix, self._matrix)
        ms.runtime.synchronize()
        took_s = time.perf_counter() - start_s
        return took_s, took_s
