"""The list of documents that share n-grams with evaluation items."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from ascend_cpt.data.readers.documents import escape_line
from ascend_cpt.data.rejects import number_lines
from ascend_cpt.data.selection import decontamination
from ascend_cpt.data.selection.choose_documents import Selection
from ascend_cpt.data.shards.task import ShardTask
from ascend_cpt.errors import DataError
from ascend_cpt.files import write_text

logger = logging.getLogger(__name__)


def contamination_path(output_prefix: str) -> Path:
    """Return `{output_prefix}.contamination.jsonl`."""
    return Path(f"{output_prefix}.contamination.jsonl")


def write_contamination(output_prefix: str, tasks: Sequence[ShardTask], selection: Selection) -> None:
    """Write the overlapping documents to the list, and log their number. If there are none, remove the list.

    Raises:
        DataError: the list cannot be written.
    """
    path = contamination_path(output_prefix)
    settings = selection.decontamination
    overlaps = [] if settings is None else decontamination.load_overlaps(tasks)
    places = number_lines([overlap.place for overlap in overlaps])
    lines = [
        {
            "file": place.file,
            "position": place.position,
            "line": place.line,
            "item": overlap.item,
            "ngram": overlap.ngram,
            "num_ngrams": overlap.num_ngrams,
        }
        for place, overlap in zip(places, overlaps, strict=True)
    ]
    try:
        if lines:
            write_text(path, map(escape_line, lines))
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from error
    if settings is not None:
        done = "dropped" if settings.action == decontamination.DROP else "kept"
        listed = f", {done} and listed in {path}" if lines else ""
        logger.info("%d documents share a %d-gram with an evaluation item%s", len(lines), settings.n, listed)
