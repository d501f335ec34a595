"""The emulated libraries, built once."""

from __future__ import annotations

import pytest

from ascend_cpt.softnpu.build import prepare_libraries
from tests.unit.softnpu.harness import Device


@pytest.fixture(scope="session")
def device() -> Device:
    return Device(prepare_libraries())
