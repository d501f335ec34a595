"""Settings of the compiled MindFormers configuration that depend on the layout."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ascend_cpt.config.loader import load_config, parse_assignments
from ascend_cpt.data.packed.manifest import Manifest
from ascend_cpt.run.mindformers_yaml import make_mindformers_config
from ascend_cpt.run.resolve import resolve

BIG = Path(__file__).resolve().parents[3] / "tests/even_layouts/cpt_llama3_70b.yaml"
MakeManifest = Callable[..., Manifest]


def compile_sections(make_manifest: MakeManifest, world_size: int, **layout: int) -> dict[str, Any]:
    sizes = {**layout, "data_parallel": world_size // math.prod(layout.values())}
    assignments = [f"parallel_config.{name}={size}" for name, size in sizes.items()]
    config = load_config(
        BIG, parse_assignments([*assignments, "cpt.validation=null", "model.model_config.use_flash_attention=null"])
    )
    manifest = make_manifest(num_rows=10**7, seq_length=8192, vocab_size=128256)
    run = resolve(config, world_size=world_size, sources=dict.fromkeys(config.cpt.sources, manifest))
    return make_mindformers_config(run, resume_from=None, init_from=None)


def test_context_parallelism_names_flash_attention_for_mindformers(make_manifest: MakeManifest) -> None:
    for context, expected in ((1, None), (2, True)):
        sections = compile_sections(make_manifest, 64, model_parallel=4, pipeline_stage=4, context_parallel=context)
        assert sections["model"]["model_config"].get("use_flash_attention") is expected


@pytest.mark.parametrize(
    ("world_size", "stages", "context", "shards"),
    [(8, 1, 1, False), (16, 1, 1, True), (16, 1, 2, True), (16, 2, 1, True)],
)
def test_parallel_optimizer_needs_replicas_of_the_weights(
    make_manifest: MakeManifest, world_size: int, stages: int, context: int, shards: bool
) -> None:
    sections = compile_sections(
        make_manifest, world_size, model_parallel=8, pipeline_stage=stages, context_parallel=context
    )
    assert sections["parallel"]["enable_parallel_optimizer"] is shards
