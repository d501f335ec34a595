"""Shares every rank's checkpoint checksums with all ranks, using the same collectives as training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ascend_cpt.backend.checkpointing.shard_files import name_files
from ascend_cpt.backend.collectives import sum_over_ranks
from ascend_cpt.checkpoint.checksums import checksum_from_words, checksum_to_words

NUM_FILES = 2  # per rank: model and optimizer


def share_checksums(own: Mapping[str, str], *, prefix: str, rank: int, num_ranks: int) -> dict[str, str]:
    """Return the checksums of all ranks' files by name. Every rank calls this once its files are written.

    Args:
        own: Checksums of this rank's files.
        prefix: Prefix of the checkpoint file names.
        rank: This rank.
        num_ranks: Number of ranks in the job.
    """
    # 16-bit words are exact in float32, and each sum has only one nonzero term.
    words = np.zeros((num_ranks, NUM_FILES, 8))
    for index, path in enumerate(name_files(Path(), prefix, rank, num_ranks)):
        words[rank, index] = checksum_to_words(own[path.name])
    total = sum_over_ranks(words.reshape(-1), num_ranks).reshape(words.shape).astype(np.int64)
    return {
        path.name: checksum_from_words(total[other, index].tolist())
        for other in range(num_ranks)
        for index, path in enumerate(name_files(Path(), prefix, other, num_ranks))
    }
