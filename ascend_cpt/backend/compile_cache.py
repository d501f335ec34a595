"""Restores the compiled training graph from this run's cache instead of compiling it again.

MindSpore's compile cache numbers a process's graphs and loads them by number in the next process. It compares neither
the configuration nor the graph: if the learning rate or weight decay changes, it silently loads the old graph. The
cache is therefore enabled only for the training step, and `run/launch/compile_cache.py` chooses the folder from
everything that the graph depends on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mindspore as ms
from mindspore import nn
from mindspore.graph.api import _cell_graph_executor

from ascend_cpt.run.launch.compile_cache import mark_complete


def cache_training_graph(folder: Path, rank: int) -> None:
    """Load this process's training graph from `folder` if it is there. Otherwise, save the graph there.

    Call this after the MindSpore context is built and before the network is compiled.
    """
    compile_graph = _cell_graph_executor.compile

    def compile_with_cache(obj: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_training_step(obj):
            return compile_graph(obj, *args, **kwargs)
        # This process's later graphs are compiled as usual.
        _cell_graph_executor.compile = compile_graph
        ms.set_context(enable_compile_cache=True, compile_cache_path=str(folder))
        try:
            result = compile_graph(obj, *args, **kwargs)
        finally:
            ms.set_context(enable_compile_cache=False)
        mark_complete(folder, rank)
        return result

    _cell_graph_executor.compile = compile_with_cache


def is_training_step(cell: Any) -> bool:
    """Return whether a cell is the training step, or wraps it with the data queue of sink mode.

    A validation's scoring graph also contains the training step, but not as its `network`.
    """
    return any(isinstance(one, nn.TrainOneStepCell) for one in (cell, getattr(cell, "network", None)))
