"""`cpt.lora`: what is refused, what is printed, and what a resumed run must have."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from ascend_cpt.config.loader import load_config, parse_assignments
from ascend_cpt.data.packed.manifest import Manifest
from ascend_cpt.errors import ConfigError
from ascend_cpt.model.lora import list_adapter_shapes, read_settings
from ascend_cpt.model.parameters import list_mindformers_shapes
from ascend_cpt.model.sizes import read_sizes
from ascend_cpt.plan.memory import estimate_memory
from ascend_cpt.plan.speed.throughput import count_adapter_products, count_trained_share
from ascend_cpt.run.planning.training_case import build_case, count_checkpoints
from ascend_cpt.run.resolve import resolve
from ascend_cpt.run.resolved_run import ResolvedRun
from ascend_cpt.run.summary import describe_frozen

REPOSITORY = Path(__file__).resolve().parents[3]
TINY = REPOSITORY / "configs/qwen3/cpt_qwen3_tiny.yaml"
LORA = "cpt.lora={rank: 8, alpha: 16}"


def resolve_run(manifest: Manifest, *assignments: str) -> ResolvedRun:
    config = load_config(TINY, parse_assignments(assignments))
    return resolve(config, world_size=2, sources={"code": manifest})


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["cpt.lora={rank: 8, alpha: 16, targets: [q_poj]}"], "cpt.lora: targets: the model has no module 'q_poj'"),
        ([LORA, "cpt.trainable=['*norm*']"], "cpt.lora: trains only adapters, but cpt.trainable also selects"),
        (
            [LORA, "model.model_config.pet_config={freeze_include: ['*norm*']}"],
            "cpt.lora: model.model_config.pet_config also selects the trained weights; remove one of them",
        ),
        ([LORA, "cpt.init_from=random"], "cpt.lora: adapters need trained weights, but cpt.init_from is random"),
        ([LORA, "optimizer.type=Muon"], "cpt.lora: requires optimizer.type AdamW, not Muon"),
    ],
)
def test_refused(assignments: list[str], message: str, make_manifest: Callable[..., Manifest]) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_run(make_manifest(), *assignments)
    assert message in str(caught.value)


def test_summary_fingerprint_and_saved_weights(make_manifest: Callable[..., Manifest]) -> None:
    whole, run = resolve_run(make_manifest()), resolve_run(make_manifest(), LORA)
    assert run.lora is not None and "lora" not in whole.fingerprint() and whole.saved_weights is None
    assert read_settings(run.fingerprint()["lora"]) == run.lora
    sizes = read_sizes(run.model)
    assert run.saved_weights == list(list_adapter_shapes(sizes, run.lora))
    assert run.frozen == list(list_mindformers_shapes(sizes))
    (line,) = describe_frozen(run)
    assert line.startswith("adapters LoRA: rank 8, scale 2, on q_proj, k_proj, v_proj, o_proj, gate_proj")


def test_plan_counts_adapters(make_manifest: Callable[..., Manifest]) -> None:
    whole, run = (build_case(resolve_run(make_manifest(), *given)) for given in ([], [LORA]))
    assert run.num_parameters - run.num_trained == whole.num_parameters == whole.num_trained
    before, after = estimate_memory(whole)[0], estimate_memory(run)[0]
    # The rank has all weights and adapters in float32, but optimizer states only of the adapters.
    assert after.weights_bytes - before.weights_bytes == 4 * run.num_trained
    assert after.optimizer_bytes == 8 * run.num_trained and before.optimizer_bytes == 8 * whole.num_parameters
    assert after.updating.gradients_bytes < before.updating.gradients_bytes / 5
    assert count_trained_share(run, 0) == 0 and count_trained_share(whole, 0) == 1
    # Hidden size 128, MLP 384, queries 128, keys 64: A and, for joined modules, B of all rows for each of them.
    qkv, proj = 24 * (128 + 256), 8 * (128 + 128)
    assert count_adapter_products(run) == qkv + proj + 16 * (128 + 768) + 8 * (384 + 128)
    assert count_adapter_products(whole) == 0


def test_plan_counts_frozen_weights(make_manifest: Callable[..., Manifest]) -> None:
    run = resolve_run(make_manifest(), "cpt.trainable=['decoder.layers.1.*']")
    whole, half = build_case(resolve_run(make_manifest())), build_case(run)
    assert count_trained_share(half, 0) == 0.5
    layer = sum(4 * 2 * size for size in [128 * 256, 128 * 128, 3 * 128 * 384, 2 * 128 + 2 * 16])
    memory = estimate_memory(half)[0]
    assert memory.optimizer_bytes == layer
    assert memory.weights_bytes == estimate_memory(whole)[0].weights_bytes
    checkpoints = count_checkpoints(run, 10)
    assert checkpoints.num_bytes == 4 * whole.num_parameters + layer
    assert dataclasses.replace(checkpoints, num_trained=whole.num_parameters).num_bytes == 12 * whole.num_parameters


def test_checkpoints_have_only_adapters(make_manifest: Callable[..., Manifest]) -> None:
    run = resolve_run(make_manifest(), LORA)
    assert count_checkpoints(run, 10).num_bytes == 12 * build_case(run).num_trained
