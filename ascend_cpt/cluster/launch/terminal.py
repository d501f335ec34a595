"""Status messages of the launcher."""

from __future__ import annotations

import contextlib
import sys


def print_status(text: str) -> None:
    """Print to stderr and flush. A closed terminal must not end a job that may still have to save."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)
