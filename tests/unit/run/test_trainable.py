"""`cpt.trainable`: what is refused, what is printed, and what a resumed run must have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ascend_cpt.config.loader import load_config, parse_assignments
from ascend_cpt.data.packed.manifest import Manifest
from ascend_cpt.errors import ConfigError
from ascend_cpt.rehearsal.shrink_recipe import shrink_recipe
from ascend_cpt.run.checks.trainable import find_trainable_problems
from ascend_cpt.run.resolve import resolve
from ascend_cpt.run.resolved_run import ResolvedRun
from ascend_cpt.run.summary import describe_frozen

REPOSITORY = Path(__file__).resolve().parents[3]
TINY = REPOSITORY / "configs/qwen3/cpt_qwen3_tiny.yaml"
ATLAS = REPOSITORY / "configs/qwen3/cpt_qwen3_0_6b_4k.yaml"
ROWS = "cpt.trainable=['*word_embeddings.weight[4000:]', 'output_layer.weight[4000:]']"


def resolve_run(manifest: Manifest, *assignments: str) -> ResolvedRun:
    config = load_config(TINY, parse_assignments(assignments))
    return resolve(config, world_size=2, sources={"code": manifest})


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["cpt.trainable=['*.layers.7.*']"], "cpt.trainable: '*.layers.7.*' matches no weight of the model"),
        (["cpt.trainable=['output_layer.weight[4096:]']"], "there are only 4096 rows, numbered from 0"),
        (
            ["cpt.trainable=['*linear_fc1.weight[5:]']"],
            "[N:] works only for the embedding and the output layer",
        ),
        ([ROWS, "optimizer.type=Muon"], "[N:] requires optimizer.type AdamW, not Muon"),
        (
            ["cpt.trainable=['*.layers.1.*']", "model.model_config.pet_config={freeze_include: ['*norm*']}"],
            "model.model_config.pet_config also selects the trained weights; remove one of them",
        ),
    ],
)
def test_refused(assignments: list[str], message: str, make_manifest: Callable[..., Manifest]) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_run(make_manifest(), *assignments)
    assert message in str(caught.value)


def test_frozen_weights_in_stages_are_refused_on_npus() -> None:
    stages = {"parallel_config": {"data_parallel": 4, "model_parallel": 1, "pipeline_stage": 2}}
    stages |= {"recompute_config.recompute": True, "model.model_config.offset": 0}
    include = {"model.model_config.pet_config": {"freeze_include": ["*norm*"]}}
    refused = "checkpoints of frozen weights need pipeline_stage 1, not 2"
    for frozen in ({"cpt.trainable": ["*.layers.1.*"]}, include):
        (problem,) = find_trainable_problems(load_config(ATLAS, stages | frozen))
        assert refused in problem
    assert find_trainable_problems(load_config(ATLAS, stages | {"cpt.trainable": ["*"]})) == []
    assert find_trainable_problems(load_config(ATLAS, include)) == []


def test_other_optimizers_train_whole_weights(make_manifest: Callable[..., Manifest]) -> None:
    run = resolve_run(make_manifest(), "cpt.trainable=['*.layers.1.*']", "optimizer.type=Muon")
    assert run.config.cpt.trainable == ("*.layers.1.*",)


def test_summary_and_fingerprint(make_manifest: Callable[..., Manifest]) -> None:
    whole, rows = resolve_run(make_manifest()), resolve_run(make_manifest(), ROWS)
    assert describe_frozen(whole) == []
    first, *others = describe_frozen(rows)
    # Everything but 96 rows of 128 numbers in both matrices.
    num_layers = 2 * (128 * (128 + 64 + 64) + 128 * 128 + 3 * 128 * 384 + 2 * 128 + 2 * 16)
    total = 2 * 4096 * 128 + num_layers + 128
    assert f"{(total - 2 * 96 * 128) / 1e6:.2f}M of {total / 1e6:.2f}M" in first, first
    assert others == [
        "frozen   rows 0 to 3999 of embedding.word_embeddings.weight",
        "frozen   rows 0 to 3999 of output_layer.weight",
    ]
    assert "trainable" not in whole.fingerprint()
    assert rows.fingerprint()["trainable"] == ["*word_embeddings.weight[4000:]", "output_layer.weight[4000:]"]


def test_a_rehearsal_trains_all_weights(make_manifest: Callable[..., Manifest]) -> None:
    run = resolve_run(make_manifest(), ROWS)
    cpt = {"trainable": list(run.config.cpt.trainable), "sources": {"code": {"path": "x"}}}
    assert "trainable" not in shrink_recipe(cpt, run, seq_length=64, global_batch_size=2)
