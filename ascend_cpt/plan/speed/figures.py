"""Published training speeds as cases: `benchmarks/plan_figures.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ascend_cpt.config.parallel_layout import ParallelLayout
from ascend_cpt.model.parameters import list_mindformers_shapes
from ascend_cpt.model.sizes import read_sizes
from ascend_cpt.plan.case import TrainingCase, split_layers

MINDFORMERS = "MindFormers"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A published speed with the case that reached it."""

    name: str
    family: str
    framework: str
    device: str
    """A name in `machines.MACHINES`."""
    tokens_per_device_s: float
    calibrates: bool
    """Whether the model is fitted to it; the others are held out."""
    case: TrainingCase


def load_figures(path: Path) -> list[Figure]:
    """Load the figures from a file."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [_make_figure(entry, content["models"][entry["model"]]) for entry in content["figures"]]


def _make_figure(entry: Mapping[str, Any], model: Mapping[str, Any]) -> Figure:
    return Figure(
        name=Path(entry["source"]).stem,
        family=entry["family"],
        framework=entry.get("framework", MINDFORMERS),
        device=entry["device"],
        tokens_per_device_s=float(entry["tokens_per_device_s"]),
        calibrates=bool(entry.get("calibrates", False)),
        case=_make_case(entry, model),
    )


def _make_case(entry: Mapping[str, Any], model: Mapping[str, Any]) -> TrainingCase:
    data, tensor, pipeline = entry["layout"]
    family = "qwen2" if entry["family"].startswith("qwen") else "llama"
    sizes = read_sizes({**model, "model_type": family, "head_dim": None})
    layers = split_layers(sizes.num_layers, pipeline, entry.get("offset"))
    recompute = entry["recompute"]
    if not isinstance(recompute, list):
        recompute = layers if recompute else [0] * pipeline
    return TrainingCase(
        model=sizes,
        parameters=list_mindformers_shapes(sizes),
        layout=ParallelLayout(
            world_size=data * tensor * pipeline,
            data_parallel=data,
            tensor_parallel=tensor,
            pipeline_parallel=pipeline,
        ),
        layers_per_stage=layers,
        seq_length=entry["seq_length"],
        micro_batch_size=entry.get("micro_batch_size", 1),
        num_micro_batches=entry.get("micro_batches", 1),
        sequence_parallel=entry.get("sequence_parallel", False),
        recomputed_layers=tuple(recompute),
        recomputes_selected=entry.get("selected", False),
        interleave=entry.get("interleave", 1),
        overlaps_exchange=entry.get("overlap", False),
        param_bytes=entry.get("param_bytes", 4),
    )
