"""The checksums of all ranks reach every rank exactly. One process sums the words of four ranks itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ascend_cpt.backend.checkpointing import share_checksums as module
from ascend_cpt.backend.checkpointing.node_local import name_files
from ascend_cpt.checkpoint.checksums import PREFIX


def test_all_checksums_are_known_to_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {
        rank: {
            path.name: PREFIX + np.random.default_rng([rank, index]).bytes(16).hex()
            for index, path in enumerate(name_files(Path(), "cpt", rank, 4))
        }
        for rank in range(4)
    }
    words: list[Any] = []
    monkeypatch.setattr(module, "sum_over_ranks", lambda values, _: (words.append(values), values)[1])
    for rank in range(4):
        module.share_checksums(own[rank], prefix="cpt", rank=rank, num_ranks=4)
    total = np.sum([part.astype(np.float32) for part in words], axis=0, dtype=np.float32)
    monkeypatch.setattr(module, "sum_over_ranks", lambda values, _: total)
    expected = {name: checksum for files in own.values() for name, checksum in files.items()}
    for rank in range(4):
        assert module.share_checksums(own[rank], prefix="cpt", rank=rank, num_ranks=4) == expected


def test_one_rank(tmp_path: Path) -> None:
    own = {path.name: PREFIX + "0123456789abcdef" * 2 for path in name_files(tmp_path, "cpt", 0, 1)}
    assert module.share_checksums(own, prefix="cpt", rank=0, num_ranks=1) == own
