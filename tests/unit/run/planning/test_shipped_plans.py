"""Every shipped configuration for Ascend can be planned without its data, is legal, and fits its devices."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ascend_cpt.config.loader import load_config
from ascend_cpt.config.parallel_layout import uses_cpu
from ascend_cpt.plan.case import GIGABYTE
from ascend_cpt.run.planning.plan_run import Cluster, plan_run

REPOSITORY = Path(__file__).resolve().parents[4]
CLUSTER = Cluster(num_nodes=None, devices_per_node=8, device="910B", device_bytes=64 * GIGABYTE)
CONFIGS = [
    path
    for path in sorted((REPOSITORY / "configs").glob("*/cpt_*.yaml"))
    if path.parent.name != "base" and not uses_cpu(load_config(path))
]
# Published numbers of parameters; tests/unit/weights/test_mapping.py computes them from the same sizes.
NUM_PARAMETERS = {
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama2_70b": 68_976_648_192,
    "llama3_8b": 8_030_261_248,
    "llama3_70b": 70_553_706_496,
    "llama3_1_8b": 8_030_261_248,
    "llama3_1_70b": 70_553_706_496,
    "qwen3_0_6b": 596_049_920,
    "qwen3_1_7b": 1_720_574_976,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
    "qwen3_14b": 14_768_307_200,
    "qwen3_32b": 32_762_123_264,
    "qwen2_72b": 72_706_203_648,
}


def model_of(path: Path) -> str:
    return re.sub(r"_\d+k$", "", path.stem.removeprefix("cpt_"))


def test_every_published_model_has_4k_and_long_rows() -> None:
    lengths: dict[str, set[int]] = {}
    for path in CONFIGS:
        lengths.setdefault(model_of(path), set()).add(load_config(path).cpt.seq_length)
    assert lengths.keys() == NUM_PARAMETERS.keys()
    assert all(4096 in found and max(found) > 4096 for found in lengths.values()), lengths


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_config_is_legal_and_fits(path: Path) -> None:
    run, plan = plan_run(path, {}, CLUSTER)
    assert plan.case.num_parameters == NUM_PARAMETERS[model_of(path)]
    assert plan.fits, [(stage.stage, stage.peak_bytes / GIGABYTE) for stage in plan.stages]
    assert run.layout.world_size % 8 == 0
    assert 0.15 < plan.time.model_flops_utilization < 0.6


RECIPES = [path for path in sorted((REPOSITORY / "configs/recipes").glob("*.yaml")) if not uses_cpu(load_config(path))]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_fits_devices_of_64_gb(path: Path) -> None:
    _, plan = plan_run(path, {}, CLUSTER)
    assert plan.fits, [(stage.stage, stage.peak_bytes / GIGABYTE) for stage in plan.stages]


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "configs/base/models").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_model_config_names_its_source(path: Path) -> None:
    assert re.search(r"config.json in (meta-llama|Qwen)/[\w.-]+ on Hugging Face", path.read_text(encoding="utf-8"))
