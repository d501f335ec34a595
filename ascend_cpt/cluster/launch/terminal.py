"""What the launcher says to the person at its terminal."""

from __future__ import annotations

import contextlib
import sys


def say(text: str) -> None:
    """Print to stderr at once. A terminal that is gone must not end a job that is still to save."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)
