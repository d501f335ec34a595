"""Plots a plan as a PNG: each stage's memory with the limit, and the parts of the step time."""

from __future__ import annotations

from pathlib import Path

from ascend_cpt.files import write_whole
from ascend_cpt.plan.case import GIGABYTE
from ascend_cpt.plan.estimate import Estimate, reserve_bytes
from ascend_cpt.plan.report import MEMORY_PARTS, split_memory

BAR_WIDTH = 0.36
COLORS = ("tab:blue", "tab:cyan", "tab:orange", "tab:red", "tab:purple", "tab:gray", "tab:olive")


def draw_plan(plan: Estimate, path: Path, *, title: str) -> None:
    """Write the plot to `path` atomically."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (memory, time) = plt.subplots(2, 1, figsize=(9, 6), height_ratios=[4, 1], constrained_layout=True)
    # Two bars per stage: forward and backward, and the update.
    bars = [(stage, moment) for stage in plan.stages for moment in (stage.training, stage.updating)]
    places = [stage.stage + (0.2 if moment is stage.updating else -0.2) for stage, moment in bars]
    bottom = [0.0] * len(bars)
    for name, color in zip(MEMORY_PARTS, COLORS, strict=False):
        heights = [split_memory(stage, moment)[name] / GIGABYTE for stage, moment in bars]
        memory.bar(places, heights, width=BAR_WIDTH, bottom=bottom, label=name, color=color)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    reserve = [reserve_bytes(stage) / GIGABYTE for stage, _ in bars]
    memory.bar(
        places, reserve, width=BAR_WIDTH, bottom=bottom, label="reserve", color="none", edgecolor="tab:gray", hatch="//"
    )
    memory.axhline(plan.limits.usable_bytes / GIGABYTE, color="black", ls="--", label="usable")
    memory.set(xlabel="pipeline stage: forward and backward, update", ylabel="GB per rank", title=title)
    memory.set_xticks([stage.stage for stage in plan.stages])
    memory.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    left = 0.0
    parts = {
        "computing": plan.time.compute_s,
        "fixed": plan.time.fixed_s,
        "tensor parallel": plan.time.tensor_exchange_s,
        "data parallel": plan.time.data_exchange_s,
        "pipeline": plan.time.pipeline_exchange_s,
        "bubble": plan.time.pipeline_bubble_s,
        "optimizer": plan.time.update_s,
    }
    for (name, seconds), color in zip(parts.items(), COLORS, strict=True):
        time.barh([0], [seconds], left=left, label=name, color=color)
        left += seconds
    time.set(xlabel="step time in seconds (estimate)", yticks=[])
    time.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    with write_whole(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
