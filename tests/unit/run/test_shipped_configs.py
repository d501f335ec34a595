"""Every shipped YAML loads, resolves and compiles to a MindFormers YAML for its cluster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from ascend_cpt.config.loader import load_config
from ascend_cpt.config.parallel_layout import uses_cpu
from ascend_cpt.data.packed.manifest import Manifest
from ascend_cpt.recipe.phases import SampleOrder
from ascend_cpt.run.mindformers_yaml import make_mindformers_config, render_yaml
from ascend_cpt.run.planning.assumed_run import choose_world_size
from ascend_cpt.run.resolve import resolve
from ascend_cpt.run.resolved_run import ResolvedRun

REPOSITORY = Path(__file__).resolve().parents[3]
CONFIGS = sorted(
    path
    for path in (REPOSITORY / "configs").glob("*/*.yaml")
    if path.parent.name not in ("base", "recipes", "stages", "tuning")
)
PROMISED = {"cpt_llama3_70b", "cpt_qwen3_8b", "cpt_llama2_7b"}


def resolve_run(path: Path, make_manifest: Callable[..., Manifest]) -> ResolvedRun:
    config = load_config(path)
    model = config.mindformers["model"]["model_config"]
    manifest = make_manifest(
        num_rows=10**7, seq_length=config.cpt.seq_length, vocab_size=model["vocab_size"], eod_id=2, pad_id=3
    )
    sets = config.cpt.validation.sets if config.cpt.validation else {}
    return resolve(
        config,
        world_size=2 if uses_cpu(config) else choose_world_size(config, None, 8),
        sources=dict.fromkeys(config.cpt.sources, manifest),
        validation=dict.fromkeys(sets, manifest),
    )


def test_promised_configs_exist() -> None:
    names = {path.stem for path in CONFIGS}
    assert {*PROMISED, "cpt_qwen3_tiny", "cpt_qwen3_tiny_base", "cpt_llama2_tiny", "cpt_llama3_tiny"} <= names


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_compiles(path: Path, make_manifest: Callable[..., Manifest]) -> None:
    run = resolve_run(path, make_manifest)
    sections = make_mindformers_config(run, resume_from=None, init_from=None)
    read_back = yaml.safe_load(render_yaml(sections, "test"))
    assert read_back == sections
    assert "cpt" not in sections and "base_config" not in sections
    model = sections["model"]["model_config"]
    assert model["seq_length"] == run.config.cpt.seq_length
    assert model["pad_token_id"] == 3 and model["hidden_dropout"] == 0.0
    assert sections["runner_config"]["epochs"] == 1
    layout = run.layout
    product = layout.data_parallel * layout.tensor_parallel * layout.pipeline_parallel * layout.context_parallel
    assert product == layout.world_size
    rows = run.budget.micro_batch_size * run.budget.num_accumulation_steps * layout.data_parallel
    assert rows == run.config.cpt.global_batch_size
    loader = sections["train_dataset"]["data_loader"]
    assert SampleOrder.from_record(loader["sample_order"]).total_rows == run.budget.total_steps * rows


def test_llama3_70b_uses_every_device_of_eight_nodes(make_manifest: Callable[..., Manifest]) -> None:
    run = resolve_run(REPOSITORY / "configs/llama3/cpt_llama3_70b.yaml", make_manifest)
    sections = make_mindformers_config(run, resume_from=None, init_from=None)
    assert (run.layout.data_parallel, run.layout.tensor_parallel, run.layout.pipeline_parallel) == (2, 4, 8)
    assert sections["parallel_config"]["micro_batch_num"] == 128  # 256 rows / data 2 / micro batch 1
    assert sections["runner_config"]["gradient_accumulation_steps"] == 1
    assert sections["parallel"]["dataset_strategy"] == [[2, 1], [2, 1]]
    assert sections["parallel"]["full_batch"] is False
    assert run.budget.total_steps == 50 * 10**9 // (256 * 8192)


def test_cpu_run_is_data_parallel_without_sink(make_manifest: Callable[..., Manifest]) -> None:
    sections = make_mindformers_config(
        resolve_run(REPOSITORY / "configs/qwen3/cpt_qwen3_tiny.yaml", make_manifest), resume_from=None, init_from=None
    )
    assert sections["parallel"]["parallel_mode"] == 0
    assert sections["runner_config"]["sink_mode"] is False
    assert sections["runner_config"]["batch_size"] == 2
