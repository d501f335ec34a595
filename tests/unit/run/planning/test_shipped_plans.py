"""Every shipped configuration for Ascend can be planned without its data, is legal, fits its devices, and is fast."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from ascend_cpt.config.loader import load_config
from ascend_cpt.config.parallel_layout import uses_cpu
from ascend_cpt.plan.case import GIGABYTE
from ascend_cpt.run.planning.plan_run import Cluster, plan_run
from benchmarks.plan_shipped import Shipped, compare, describe, list_shipped, share_of_memory

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
    "qwen3_30b_a3b": 30_532_122_624,
    "qwen2_72b": 72_706_203_648,
}


def model_of(path: Path) -> str:
    return re.sub(r"_(\d+k|lora_\d+dev)$", "", path.stem.removeprefix("cpt_"))


def test_every_published_model_has_4k_and_long_rows() -> None:
    lengths: dict[str, set[int]] = {}
    for path in CONFIGS:
        lengths.setdefault(model_of(path), set()).add(load_config(path).cpt.seq_length)
    assert lengths.keys() == NUM_PARAMETERS.keys()
    assert all(4096 in found and max(found) > 4096 for found in lengths.values()), lengths


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_config_is_legal_and_fits(path: Path) -> None:
    run, plan = plan_run(path, {}, CLUSTER)
    trained = plan.case.num_trained if run.lora else 0  # adapters are no parameters of the model
    assert plan.case.num_parameters - trained == NUM_PARAMETERS[model_of(path)]
    assert plan.fits, [(stage.stage, stage.peak_bytes / GIGABYTE) for stage in plan.stages]
    assert run.layout.world_size % (2 if run.lora else 8) == 0
    assert 0.15 < plan.time.model_flops_utilization < 0.6


SHIPPED = list(list_shipped())
# Searched in the default tests; the others are slow.
QUICK = {"cpt_llama2_7b", "cpt_llama3_8b_8k", "cpt_llama3_70b", "cpt_qwen2_72b_4k", "cpt_qwen3_0_6b_4k", "cpt_qwen3_8b",
         "mindspeed_qwen3_8b", "pai_qwen2_72b", "qwen3_8b_8k_32k, 32k"}  # fmt: skip
MIN_SHARE_OF_BEST = {
    "mindformers_llama2_7b_wikitext": 0.8,
    "cpt_qwen3_8b_lora_2dev": 0.85,
    "cpt_qwen3_8b_lora_8dev": 0.85,
}
"""The layout on MindFormers' page, and layouts without stages. All others must be within 10 % of the best."""
MAX_SHARE_OF_MEMORY = 0.92
TIGHT = {"mindformers_llama2_7b_wikitext", "pai_qwen2_72b"}
"""These take more memory and have an alternative in a comment."""


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda shipped: shipped.name)
def test_shipped_layout_leaves_memory_free(shipped: Shipped) -> None:
    share = share_of_memory(shipped.plan())
    assert share <= (1 if shipped.name in TIGHT else MAX_SHARE_OF_MEMORY)


@pytest.mark.parametrize("name", sorted(TIGHT))
def test_tight_layout_has_a_safe_one_in_a_comment(name: str) -> None:
    path = REPOSITORY / f"configs/recipes/{name}.yaml"
    comment = re.search(rf"^# {name}_safe: .*\n(?:# .*\n)*?((?:#   .*\n)+)", path.read_text(encoding="utf-8"), re.M)
    assert comment is not None
    _, plan = plan_run(path, yaml.safe_load(comment[1].replace("#   ", "")), CLUSTER)
    assert plan.fits and share_of_memory(plan) <= MAX_SHARE_OF_MEMORY


@pytest.mark.parametrize(
    "shipped",
    [pytest.param(one, marks=() if one.name in QUICK else pytest.mark.slow, id=one.name) for one in SHIPPED],
)
def test_shipped_layout_is_within_10_percent_of_the_best(shipped: Shipped) -> None:
    now, best = shipped.find_best()
    assert now.time.tokens_per_s >= MIN_SHARE_OF_BEST.get(shipped.name, 0.9) * best.time.tokens_per_s


GUIDE = (REPOSITORY / "docs/planning.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda shipped: shipped.name)
def test_shipped_plan_is_as_documented(shipped: Shipped) -> None:
    plan = shipped.plan()
    (row,) = (line for line in GUIDE.splitlines() if re.match(rf"\| {shipped.name} \| \d+ \|", line))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    speed = f"{plan.time.tokens_per_device_s:,.0f}"
    assert [cells[1], *cells[4:6]] == [str(plan.case.layout.world_size), describe(plan.case), speed]
    assert cells[9] == f"{share_of_memory(plan):.0%}"


def test_no_plan_is_slower_than_upstream_without_a_reason() -> None:
    found = [
        one for shipped in SHIPPED if not shipped.overrides and shipped.path in CONFIGS for one in compare(shipped)
    ]
    assert len(found) == 18
    for one in found:
        is_slower = one.planned < one.figure.tokens_per_device_s
        assert bool(one.reasons) == is_slower, (one.name, one.figure.name)
        start = f"| {one.name} | {one.figure.framework} {one.figure.name} | {one.figure.device} |"
        assert f"{start} {one.figure.tokens_per_device_s:,.0f} | {one.planned:,.0f} | {'; '.join(one.reasons)}" in GUIDE


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "configs/base/models").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_model_config_names_its_source(path: Path) -> None:
    assert re.search(r"config.json in (meta-llama|Qwen)/[\w.-]+ on Hugging Face", path.read_text(encoding="utf-8"))
