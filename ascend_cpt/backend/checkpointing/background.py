"""Work of a save that may run in a background thread, and the host memory that it reads from."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, TypeVar

import numpy as np

Result = TypeVar("Result")
Tensors = Mapping[str, np.ndarray]

_ALIGNMENT_BYTES = 64
_PAGE_BYTES = 4096


class Task(Generic[Result]):
    """Runs `work` in a background thread or, with `background=False`, at once. `wait` returns its result.

    The thread ends with the process.
    """

    def __init__(self, work: Callable[[], Result], *, background: bool) -> None:
        self._work = work
        self._results: list[Result] = []
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        if background:
            self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
            self._thread.start()
        else:
            self._results.append(work())

    @property
    def is_done(self) -> bool:
        """Whether the work has ended, with or without an error."""
        return self._thread is None or not self._thread.is_alive()

    def wait(self) -> Result:
        """Wait for the end of the work and return its result. If it failed, re-raise the error."""
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error
        return self._results[0]

    def _run(self) -> None:
        try:
            self._results.append(self._work())
        except BaseException as error:  # re-raised by `wait` in the main thread
            self._error = error
        finally:
            del self._work  # and the arrays that it refers to


class HostBuffer:
    """Host memory for one copy of a rank's tensors, which every save reuses.

    Writing to newly allocated memory is several times slower than to memory that is in use.
    """

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def reserve(self, num_bytes: int) -> None:
        """Allocate `num_bytes`, and use each page once."""
        if self._memory.size < num_bytes:
            self._memory = np.empty(num_bytes, np.uint8)
            self._memory[::_PAGE_BYTES] = 0

    def copy(self, parts: tuple[Tensors, ...]) -> tuple[Tensors, ...]:
        """Return copies of all tensors. The previous copies must no longer be in use."""
        tensors = [tensor for part in parts for tensor in part.values()]
        self.reserve(count_buffer_bytes(tensor.nbytes for tensor in tensors))
        begin = 0
        copies: list[dict[str, np.ndarray]] = []
        for part in parts:
            copies.append({})
            for name, tensor in part.items():
                place = self._memory[begin : begin + tensor.nbytes].view(tensor.dtype).reshape(tensor.shape)
                np.copyto(place, tensor)
                copies[-1][name] = place
                begin += count_buffer_bytes([tensor.nbytes])
        return tuple(copies)


def count_buffer_bytes(sizes_bytes: Iterable[int]) -> int:
    """Return the size of a buffer for tensors of these sizes."""
    return sum(-(-size // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES for size in sizes_bytes)
