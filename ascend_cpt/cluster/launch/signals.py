"""Stop signals received by a launcher, kept over all attempts of a job."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

FORWARDED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequests:
    """Context manager that collects stop signals in `received`. `add` records one from another node."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequests:
        # Ignored signals stay ignored, so that nohup keeps the job running after its terminal closes.
        handled = [number for number in FORWARDED_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._receive) for number in handled}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def add(self, number: int) -> None:
        """Record a signal received by another node's launcher."""
        self.received.append(number)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self.received.append(number)


def name_signal(number: int) -> str:
    """Return the name of a signal, such as SIGTERM."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
