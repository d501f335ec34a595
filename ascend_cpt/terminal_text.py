"""Makes text from logs, the network or a model safe for a terminal: no cursor moves, title changes or hidden lines."""

from __future__ import annotations

import re

_CONTROL = re.compile(
    # Escape sequences: CSI with parameters; OSC, DCS and others up to their end; the rest have two or three characters.
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
    # Other control characters, characters that reorder the text after them, and bytes that are not UTF-8.
    r"|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_CARRIAGE_RETURNS = re.compile(r"\r+(?!\n)")


def strip_controls(text: str) -> str:
    """Return `text` without escape sequences and control characters, except line feeds and tabs.

    A carriage return in a line becomes a space, so that it cannot overwrite what comes before it.
    """
    if text.isprintable():
        return text
    return _CARRIAGE_RETURNS.sub(" ", _CONTROL.sub("", text)).replace("\r", "")


def one_line(text: object) -> str:
    """Join a text's words on one line, because library messages and names in files can span several lines."""
    return " ".join(str(text).split())
