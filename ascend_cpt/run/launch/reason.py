"""Why a job failed, from its output."""

from __future__ import annotations

import re

MAX_REASON_CHARACTERS = 300
_EXCEPTION = re.compile(r"^(?:\[rank\d+\]: )?[A-Za-z_][\w.]*(?:Error|Exception|Interrupt)\b")
_ENDED = re.compile(r"^(?:\S+: )?worker \d+.* (?:was killed|failed with exit code)")


def find_reason(console: str, code: int) -> str:
    """Return the first error line of a job's output, or else its last line."""
    # MindSpore draws rules of dashes within its messages.
    lines = [line for text in console.splitlines() if (line := text.strip()).strip("-")]
    for is_reason in (
        lambda line: line.startswith("error:"),
        lambda line: bool(_EXCEPTION.match(line)),
        lambda line: bool(_ENDED.match(line)),
    ):
        for index, line in enumerate(lines):
            if is_reason(line):
                reason = line
                for more in lines[index + 1 :]:
                    if not reason.endswith(":"):
                        break
                    reason = f"{reason} {more.removeprefix('- ')}"
                return reason[:MAX_REASON_CHARACTERS]
    return f"exit code {code}: {lines[-1] if lines else 'no output'}"[:MAX_REASON_CHARACTERS]
