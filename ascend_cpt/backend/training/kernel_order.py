"""How MindSpore 2.9 schedules the kernels of a graph on Ascend, and the setting that a training step needs.

With two or more dispatch threads, a graph runs as one actor that launches its kernels in compiled order. With one
thread, each kernel is a separate actor. Actors are ordered by arrows, and MindSpore omits arrows for side effects
when the run has pipeline stages and its cells are inlined late. The optimizer then reads moments before they are
assigned, and the weights only decay. Without stages, MindSpore rejects the training step's graph (ConditionSwitch).

MindSpore uses 0.18 × the lesser of `runtime_num_threads` (30) and the number of cores, so a machine with fewer than 12
cores gets one thread.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ascend_cpt.errors import ConfigError

RUNTIME_CONF = "MS_DEV_RUNTIME_CONF"
ORDER_SWITCHES = ("pipeline", "kbk_sub_graph_mode")
DEFAULT_RUNTIME_THREADS = 30
DISPATCH_SHARE = 0.18
MIN_DISPATCH_THREADS = 2


def count_dispatch_threads(runtime_num_threads: int | None, num_cores: int) -> int:
    """Return the number of dispatch threads that MindSpore 2.9 chooses (`ComputeThreadNums` in its runtime)."""
    return max(1, int(min(runtime_num_threads or DEFAULT_RUNTIME_THREADS, num_cores) * DISPATCH_SHARE))


def find_disabled_order(runtime_conf: str) -> str | None:
    """Return the MS_DEV_RUNTIME_CONF entry that disables the compiled kernel order, or None."""
    for entry in runtime_conf.split(","):
        name, _, value = entry.partition(":")
        if name.strip() in ORDER_SWITCHES and value.strip().lower() in ("false", "0"):
            return entry.strip()
    return None


def keep_kernel_order(context: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> None:
    """Give the process enough dispatch threads. Call this once, before the MindSpore context is built.

    Args:
        context: The `context` section of the configuration.
        environ: The environment of the process.

    Raises:
        ConfigError: when MS_DEV_RUNTIME_CONF disables the order, or the machine has only one core.
    """
    disabled = find_disabled_order(environ.get(RUNTIME_CONF, ""))
    if disabled:
        raise ConfigError(
            f"{RUNTIME_CONF}: {disabled} lets kernels run before the values that they read are assigned; "
            "remove this entry"
        )
    num_cores = os.cpu_count() or 1
    if count_dispatch_threads(context.get("runtime_num_threads"), num_cores) >= MIN_DISPATCH_THREADS:
        return
    if num_cores < MIN_DISPATCH_THREADS:
        raise ConfigError("device_target Ascend needs a host with at least 2 CPU cores; this one has 1")
    from mindspore import runtime

    runtime.dispatch_threads_num(MIN_DISPATCH_THREADS)
