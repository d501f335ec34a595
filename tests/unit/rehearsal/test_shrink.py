"""Every shipped configuration for Ascend shrinks to a run that is legal, small and of the same kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ascend_cpt.config.loader import load_config
from ascend_cpt.config.parallel_layout import ParallelLayout, uses_cpu
from ascend_cpt.errors import ClusterError, ConfigError
from ascend_cpt.rehearsal.shrink import Rehearsal, shrink, shrink_to_one_device
from ascend_cpt.rehearsal.shrink_layout import shrink_layout
from ascend_cpt.rehearsal.shrink_recipe import NUM_STEPS
from ascend_cpt.run.planning.assumed_run import choose_world_size, resolve_without_data

REPOSITORY = Path(__file__).resolve().parents[3]
CONFIGS = [
    path
    for folder in ("llama2", "llama3", "qwen2", "qwen3", "recipes")
    for path in sorted((REPOSITORY / "configs" / folder).glob("*.yaml"))
    if not uses_cpu(load_config(path)) and "_a3b_" not in path.name  # mixtures of experts are refused
]
KEPT_MODEL_KEYS = (
    "model_type",
    "tie_word_embeddings",
    "qk_layernorm",
    "rope_theta",
    "compute_dtype",
    "params_dtype",
    "softmax_compute_dtype",
    "use_attn_mask_compression",
    "use_flash_attention",
)


def load(path: Path, overrides: dict[str, Any] | None = None, max_processes: int = 8) -> tuple[Any, Rehearsal]:
    config = load_config(path, overrides)
    run = resolve_without_data(config, choose_world_size(config, None, 8))
    return run, shrink(run, max_processes)


def resolve_small(rehearsal: Rehearsal, folder: Path) -> Any:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(rehearsal.sections, sort_keys=False), encoding="utf-8")
    return resolve_without_data(load_config(path), rehearsal.layout.world_size)


def test_mixtures_of_experts_are_refused() -> None:
    with pytest.raises(ConfigError, match="qwen3_moe cannot be rehearsed"):
        load(REPOSITORY / "configs/qwen3/cpt_qwen3_30b_a3b_4k.yaml")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_shrink_to_legal_runs(path: Path, tmp_path: Path) -> None:
    run, rehearsal = load(path)
    small = resolve_small(rehearsal, tmp_path)
    assert small.budget.total_steps == NUM_STEPS
    assert small.layout == rehearsal.layout and small.layout.world_size <= 8
    assert small.schedule is None or small.schedule.peak_lr == pytest.approx(1e-3)
    for key in KEPT_MODEL_KEYS:
        assert small.model.get(key) == run.model.get(key), key
    for section in ("parallel", "recompute_config", "optimizer", "runner_wrapper"):
        before, after = (set((item.config.mindformers.get(section) or {}).keys()) for item in (run, small))
        assert before <= after
    for name in ("data_parallel", "tensor_parallel", "pipeline_parallel", "context_parallel"):
        assert (getattr(run.layout, name) > 1) >= (getattr(small.layout, name) > 1)
    assert list(small.config.cpt.sources) == list(run.config.cpt.sources)
    (tmp_path / "one").mkdir()
    one = resolve_small(shrink_to_one_device(rehearsal), tmp_path / "one")
    assert one.budget.tokens_per_step == small.budget.tokens_per_step
    assert one.budget.num_accumulation_steps == 1
    assert rehearsal.changes


@pytest.mark.parametrize(
    ("sizes", "max_processes", "expected"),
    [
        ((2, 8, 4, 1), 8, (2, 2, 2, 1)),
        ((2, 4, 1, 1), 8, (2, 4, 1, 1)),
        ((4, 4, 4, 1), 8, (2, 2, 2, 1)),
        ((8, 8, 4, 2), 8, (1, 2, 2, 2)),
        ((2, 8, 4, 1), 4, (1, 2, 2, 1)),
        ((2, 8, 4, 1), 2, (1, 2, 1, 1)),
        ((3, 1, 1, 1), 8, (2, 1, 1, 1)),
        ((1, 1, 1, 1), 1, (1, 1, 1, 1)),
    ],
)
def test_layout_gives_way_in_order(
    sizes: tuple[int, int, int, int], max_processes: int, expected: tuple[int, int, int, int]
) -> None:
    data, tensor, pipeline, context = sizes
    layout = ParallelLayout(
        world_size=data * tensor * pipeline * context,
        data_parallel=data,
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
        context_parallel=context,
    )
    small = shrink_layout(layout, max_processes)
    found = (small.data_parallel, small.tensor_parallel, small.pipeline_parallel, small.context_parallel)
    assert found == expected
    assert small.world_size == data_product(expected)


def data_product(sizes: tuple[int, int, int, int]) -> int:
    return sizes[0] * sizes[1] * sizes[2] * sizes[3]


@pytest.mark.parametrize("max_processes", [0, 1])
def test_too_few_processes_are_refused(max_processes: int) -> None:
    layout = ParallelLayout(world_size=8, data_parallel=8)
    with pytest.raises(ClusterError, match="give at least 2"):
        shrink_layout(layout, max_processes)


def test_recompute_and_offset_by_stage(tmp_path: Path) -> None:
    overrides = {
        "recompute_config.recompute": [True, 5, 0, False],
        "model.model_config.offset": [1, 0, 0, -1],
    }
    _, rehearsal = load(REPOSITORY / "tests/even_layouts/cpt_llama3_70b.yaml", overrides)
    assert rehearsal.sections["recompute_config"]["recompute"] == [True, 1]
    assert rehearsal.model["offset"] == [1, -1]
    assert resolve_small(rehearsal, tmp_path).model["num_hidden_layers"] == 4
    assert "offset: [1, 0, 0, -1] -> [1, -1]" in rehearsal.changes


def test_uneven_stages_stay_uneven(tmp_path: Path) -> None:
    run, rehearsal = load(REPOSITORY / "configs/llama3/cpt_llama3_70b.yaml")
    assert run.layout.pipeline_parallel == len(run.model["offset"]) == 8 and any(run.model["offset"])
    assert rehearsal.layout.pipeline_parallel == len(rehearsal.model["offset"]) == 2 and any(rehearsal.model["offset"])
    assert len(rehearsal.sections["recompute_config"]["recompute"]) == 2
    assert resolve_small(rehearsal, tmp_path).model["num_hidden_layers"] == 4


def test_rows_are_as_short_as_the_settings_allow() -> None:
    path = REPOSITORY / "configs/llama3/cpt_llama3_1_8b_32k.yaml"
    _, compressed = load(path)
    _, plain = load(path, {"model.model_config.use_attn_mask_compression": False})
    _, within = load(path, {"model.model_config.use_attn_mask_compression": False, "cpt.document_attention": "within"})
    assert [item.seq_length for item in (compressed, plain, within)] == [2048, 128, 2048]
    assert plain.model["rope_scaling"]["original_max_position_embeddings"] == 32


def test_sharded_weights_stay_sharded() -> None:
    _, rehearsal = load(REPOSITORY / "tests/even_layouts/cpt_llama3_70b.yaml")
    threshold_kb = rehearsal.sections["parallel"]["parallel_optimizer_config"]["parallel_optimizer_threshold"]
    width, tensor = rehearsal.model["hidden_size"], rehearsal.layout.tensor_parallel
    assert width * 4 / 1024 < threshold_kb < width * width * 4 / tensor / 1024


def test_tasks_are_left_out(tmp_path: Path) -> None:
    tasks = {"exam": {"path": "x.jsonl", "kind": "continuation"}}
    for sets in ({}, {"general": {"path": "x"}}):
        overrides = {"cpt.validation": {"sets": sets, "tasks": tasks}}
        _, rehearsal = load(REPOSITORY / "configs/qwen3/cpt_qwen3_0_6b_4k.yaml", overrides)
        validation = resolve_small(rehearsal, tmp_path).config.cpt.validation
        assert (validation is None) == (not sets)
        assert validation is None or (list(validation.sets) == ["general"] and not validation.tasks)
