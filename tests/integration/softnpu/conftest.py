"""Datasets without padded rows, and the runs on the CPU that emulated runs are compared with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.conftest import pack_rows
from tests.integration.softnpu.layouts import SHORT_ROWS, Reference
from tests.integration.softnpu.trial import CpuRun, make_reference


@pytest.fixture(scope="package")
def get_dataset(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Return a function that returns a dataset with rows of this length, none of them padded.

    Ranks and micro batches weight the means of their rows equally, one batch on one device does not: with padded rows
    the losses of layouts differ.
    """
    made: dict[int, Path] = {}

    def get(seq_length: int) -> Path:
        if seq_length not in made:
            prefix = tmp_path_factory.mktemp("packed") / "train_text_document"
            num_rows = 50 if seq_length == SHORT_ROWS else 40
            made[seq_length] = pack_rows(prefix, num_rows=num_rows, seq_length=seq_length, pads=False)
        return made[seq_length]

    return get


@pytest.fixture(scope="package")
def get_reference(
    tmp_path_factory: pytest.TempPathFactory, get_dataset: Callable[[int], Path]
) -> Callable[[Reference], CpuRun]:
    """Return a function that trains a reference once."""
    made: dict[str, CpuRun] = {}

    def get(reference: Reference) -> CpuRun:
        if reference.key not in made:
            folder = tmp_path_factory.mktemp("reference")
            made[reference.key] = make_reference(folder, get_dataset(reference.seq_length), reference)
        return made[reference.key]

    return get
