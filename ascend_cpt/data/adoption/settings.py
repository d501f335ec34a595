"""Settings for `tools/inspect_data.py adopt`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class AdoptSettings:
    """Settings for `tools/inspect_data.py adopt`; see its `--help`."""

    path: Path
    tokenizer_path: str
    tokenizer_type: str | None = None
    """Default: by the name of the file."""
    eod_token: str | None = None
    seq_length: int | None = None
    """Trained tokens per row of a MindRecord dataset; default: from the length of the rows."""
    pad_id: int | None = None
    """Padding id of the dataset; default: that of the tokenizer."""
    ignore_labels: bool = False
