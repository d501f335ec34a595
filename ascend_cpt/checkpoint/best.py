"""Finds a run's best checkpoints by a value recorded at each step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ascend_cpt.checkpoint.locate import BEST_NAME, list_complete
from ascend_cpt.files import write_text


def find_best(checkpoint_root: Path, values: Mapping[int, float], num_best: int) -> list[Path]:
    """Return the folders of complete checkpoints with the lowest values, best first.

    Args:
        checkpoint_root: Folder with a subfolder for each saved step.
        values: Value by step (lower is better). A checkpoint whose step is missing here is not a candidate.
        num_best: Maximum number of folders. If values are equal, the later step is better.
    """
    complete, _ = list_complete(checkpoint_root)
    steps = sorted(complete.keys() & values.keys(), key=lambda step: (values[step], -step))
    return [complete[step].folder for step in steps[:num_best]]


def mark_best(checkpoint_root: Path, folder: Path) -> None:
    """Write the run folder's `best` file, through which `locate_checkpoint` opens the best checkpoint."""
    marker = checkpoint_root.parent / BEST_NAME
    if not marker.is_file() or marker.read_text(encoding="utf-8").strip() != folder.name:
        write_text(marker, f"{folder.name}\n")
