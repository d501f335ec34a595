"""Every registered operator has a test."""

from __future__ import annotations

import re
from pathlib import Path

from tests.unit.softnpu.harness import Device

# Of sink mode's data queue: tested with the runtime.
_OF_THE_RUNTIME = {"GetNext", "InitData"}
_CALLED = re.compile(r'"([A-Z]\w+)"')


def test_every_operator_is_called_by_a_test(device: Device) -> None:
    called = set()
    for path in Path(__file__).parent.glob("test_ops_*.py"):
        called |= set(_CALLED.findall(path.read_text(encoding="utf-8")))
    table = device.list_operators()
    assert len(table) > 50
    missing = {name.removeprefix("aclnn") for name in table} - _OF_THE_RUNTIME - called
    assert not missing, f"operators without a test: {sorted(missing)}"


def test_signatures_have_known_letters(device: Device) -> None:
    for name, signature in device.list_operators().items():
        assert signature == "by name" or not set(signature) - set("tsLIFBiwcbfdp"), name
