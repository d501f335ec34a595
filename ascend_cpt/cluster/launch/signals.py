"""Signals that ask a launcher to stop, remembered over all attempts of a job."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

FORWARDED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequests:
    """Collects the numbers of the signals in `received`, as a context manager, or from another node by `add`."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequests:
        # What is ignored stays ignored: so nohup keeps the job when its terminal closes.
        heard = [number for number in FORWARDED_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._receive) for number in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def add(self, number: int) -> None:
        """Take a signal that another node's launcher got."""
        self.received.append(number)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self.received.append(number)


def name_signal(number: int) -> str:
    """Return the name of a signal, such as SIGTERM."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
