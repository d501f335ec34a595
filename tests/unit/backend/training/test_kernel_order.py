"""Dispatch threads of MindSpore, as it chooses them, and the settings that are refused."""

from __future__ import annotations

import pytest

from ascend_cpt.backend.training.kernel_order import count_dispatch_threads, find_disabled_order, keep_kernel_order
from ascend_cpt.errors import ConfigError


@pytest.mark.parametrize(
    ("runtime_num_threads", "num_cores", "expected"),
    [(None, 2, 1), (None, 11, 1), (None, 12, 2), (None, 192, 5), (8, 192, 1)],
)
def test_threads_that_mindspore_chooses(runtime_num_threads: int | None, num_cores: int, expected: int) -> None:
    assert count_dispatch_threads(runtime_num_threads, num_cores) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pipeline:False", "pipeline:False"),
        ("memory_statistics:True, kbk_sub_graph_mode:false", "kbk_sub_graph_mode:false"),
        ("switch_inline:False", None),
        ("pipeline:True", None),
        ("", None),
    ],
)
def test_switches_that_disable_the_order(text: str, expected: str | None) -> None:
    assert find_disabled_order(text) == expected


def test_a_disabled_order_is_refused() -> None:
    with pytest.raises(ConfigError, match="MS_DEV_RUNTIME_CONF: pipeline:False .*remove this entry"):
        keep_kernel_order({}, {"MS_DEV_RUNTIME_CONF": "pipeline:False"})


def test_one_core_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    with pytest.raises(ConfigError, match="at least 2 CPU cores"):
        keep_kernel_order({}, {})


def test_a_large_host_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is set: MindSpore is not even imported."""
    monkeypatch.setattr("os.cpu_count", lambda: 192)
    monkeypatch.setitem(__import__("sys").modules, "mindspore", None)
    keep_kernel_order({}, {})
