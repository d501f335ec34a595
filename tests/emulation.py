"""The condition under which tests can use the emulated CANN libraries."""

from __future__ import annotations

import platform
import shutil

import pytest

needs_emulation = pytest.mark.skipif(
    shutil.which("g++") is None or platform.machine() != "x86_64",
    reason="the emulated CANN libraries need g++ on x86-64",
)
