"""Status messages of the launcher."""

from __future__ import annotations

import contextlib
import sys

from ascend_cpt.terminal_text import strip_controls


def print_status(text: str) -> None:
    """Print to stderr, without control characters, and flush.

    A closed terminal must not end a job that may still have to save.
    """
    with contextlib.suppress(OSError):
        print(strip_controls(text), file=sys.stderr, flush=True)
