"""Chooses a parallel layout that fits on a few processes and keeps as many parallel dimensions as possible."""

from __future__ import annotations

import dataclasses
import math

from ascend_cpt.config.parallel_layout import ParallelLayout
from ascend_cpt.errors import ClusterError
from ascend_cpt.plan.layout import NODE_DEVICES

# Dimensions are reduced in this order.
ORDER = ("data_parallel", "pipeline_parallel", "tensor_parallel", "context_parallel")


def shrink_layout(layout: ParallelLayout, max_processes: int) -> ParallelLayout:
    """Return `layout` with dimensions above 2 reduced to 2, then to 1, until the product fits `max_processes`.

    Raises:
        ClusterError: when `max_processes` is below 1, or is 1 for a layout of several devices.
    """
    sizes = {name: int(getattr(layout, name)) for name in ORDER}
    if max_processes < 1 or (max_processes == 1 and layout.world_size > 1):
        raise ClusterError(
            f"--processes {max_processes}: a layout of {layout.world_size} devices cannot be reduced that far; give at "
            "least 2"
        )
    for target in (2, 1):
        for name in ORDER:
            if _fits(sizes, max_processes):
                break
            sizes[name] = min(sizes[name], target)
    return dataclasses.replace(layout, world_size=math.prod(sizes.values()), **sizes)


def _fits(sizes: dict[str, int], max_processes: int) -> bool:
    """Return whether the product fits and is a number of devices that MindSpore supports."""
    product = math.prod(sizes.values())
    is_legal = not product % NODE_DEVICES or not NODE_DEVICES % product
    return product <= max_processes and is_legal
