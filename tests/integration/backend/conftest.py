"""MindSpore's execution mode belongs to the process: a test that changes it must not change it for later tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _keep_mode() -> Iterator[None]:
    ms = pytest.importorskip("mindspore")
    before = ms.get_context("mode")
    yield
    ms.set_context(mode=before)
