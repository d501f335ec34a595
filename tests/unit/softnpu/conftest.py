"""The emulated libraries, built once."""

from __future__ import annotations

from pathlib import Path

import pytest

from ascend_cpt.softnpu.build import prepare_libraries
from tests.unit.softnpu.harness import Device


@pytest.fixture(scope="session")
def library_folder() -> Path:
    return prepare_libraries()


@pytest.fixture(scope="session")
def device(library_folder: Path) -> Device:
    return Device(library_folder)
