"""Reserves the terminal for our own lines and sends library output to a log file."""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO

from ascend_cpt.terminal_text import strip_controls


class _PlainText(TextIOWrapper):
    """A text stream that drops control characters, which model output and input files can contain."""

    def write(self, text: str) -> int:
        super().write(strip_controls(text))
        return len(text)


@contextmanager
def captured_output(log_path: Path) -> Iterator[TextIO]:
    """Redirect file descriptors 1 and 2 to `log_path` (appending) and yield a stream to the original standard output.

    MindFormers logs several lines per step and MindSpore writes from C++. Redirecting the descriptors captures both. On
    exit, the descriptors are restored so that an error message appears in the terminal.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    _flush()
    originals = [os.dup(1), os.dup(2)]
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    terminal = os.fdopen(os.dup(originals[0]), "wb")
    console = _PlainText(terminal, encoding="utf-8", errors="replace", line_buffering=True)
    # A crash in native code prints its stack where the launcher looks for it.
    faulthandler.enable(console)
    try:
        yield console
    finally:
        _flush()
        for descriptor, original in enumerate(originals, start=1):
            os.dup2(original, descriptor)
            os.close(original)
        faulthandler.enable(sys.__stderr__ or sys.stderr)
        console.close()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
