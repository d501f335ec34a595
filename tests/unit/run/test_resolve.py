"""Configurations that do not fit are refused with a one-line error."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ascend_cpt.config.loader import load_config, parse_assignments
from ascend_cpt.data.packed.manifest import Manifest
from ascend_cpt.errors import ConfigError
from ascend_cpt.run.resolve import resolve
from ascend_cpt.run.resolved_run import ResolvedRun

REPOSITORY = Path(__file__).resolve().parents[3]
TINY = REPOSITORY / "configs/qwen3/cpt_qwen3_tiny.yaml"
BIG = REPOSITORY / "tests/even_layouts/cpt_llama3_70b.yaml"


def resolve_run(
    path: Path, manifest: Manifest, *assignments: str, world_size: int = 2, **manifests: Any
) -> ResolvedRun:
    config = load_config(path, parse_assignments(assignments))
    return resolve(config, world_size=world_size, sources={"code": manifest}, **manifests)


def big_manifest(make_manifest: Callable[..., Manifest]) -> Manifest:
    return make_manifest(num_rows=10**7, seq_length=8192, vocab_size=128256)


@pytest.mark.parametrize(
    ("assignment", "world_size", "message"),
    [
        ("parallel_config.model_parallel=2", 2, "a CPU run supports only data parallelism"),
        ("cpt.global_batch_size=15", 2, "global_batch_size 15 is not divisible by data_parallel 2"),
        ("cpt.train_tokens=100", 2, "100 tokens are less than 1 step of 1024 tokens"),
        ("runner_config.batch_size=1", 2, "a CPU run cannot accumulate gradients"),
        ("model.model_config.num_key_value_heads=3", 1, "num_key_value_heads 3 does not divide num_attention_heads 8"),
        ("model.model_config.hidden_dropout=0.1", 1, "hidden_dropout must be 0"),
        ("model.model_config.seq_length=128", 1, "model.model_config.seq_length: remove it; set cpt.seq_length"),
        ("model.model_config.pad_token_id=0", 1, "pad_token_id 0 is not the padding token of code (1;"),
        ("runner_config.epochs=2", 1, "train_tokens and runner_config.epochs are both set"),
        ("cpt.validation.every=1B", 1, "cpt.validation.every: 1000000000 tokens is longer than the run"),
        ("cpt.schedule.kind=cosin", 1, "kind 'cosin' is unknown"),
        ("cpt.schedule.final_lr=1", 1, "final_lr must lie between 0 and peak_lr"),
        ("cpt.schedule.warmup_tokens=300K", 1, "does not fit"),
        (
            "model.model_config.model_type=gemma2",
            1,
            "'gemma2' is not supported .a GELU MLP, norms that multiply by 1 . weight, and attention windows in every "
            "second layer.; choose one of llama, mistral, ",
        ),
        ("model.model_config.model_type=llamma", 1, "'llamma' is unknown; did you mean 'llama'"),
        ("optimizer.type=Adamx", 1, "'Adamx' is unknown; did you mean"),
        ("context.device_target=GPU", 1, "'GPU' is unknown"),
        ("parallel_config.data_parallel=7", 2, "the launch has 2 workers; remove the key"),
        ("micro_batch_interleave_num=2", 1, "micro_batch_interleave_num: remove it"),
        (
            "model.model_config.rope_scaling={rope_type: longrope, factor: 4.0}",
            1,
            "model.model_config.rope_scaling.rope_type: longrope is not supported (it has different frequencies",
        ),
        (
            "model.model_config.rope_parameters={rope_type: yarn, factor: 4.0}",
            1,
            "command line: model.model_config.rope_parameters: rope_type yarn needs original_max_position_embeddings",
        ),
        ("model.model_config.position_embedding_type=yarn", 1, "position_embedding_type: remove it; set rope_scaling"),
        ("runner_config.sink_size=10", 1, "runner_config.sink_size: remove it"),
        (
            "model.model_config.pet_config={pet_type: lora, lora_rank: 8}",
            1,
            "pet_config: lora_rank, pet_type: LoRA and other adapters are not supported; remove the section, or keep",
        ),
        ("model.model_config.pet_config={}", 1, "pet_config: freeze_include: must be a list of patterns"),
        ("model.model_config.pet_config=lora", 1, "pet_config: must have freeze_include"),
        (
            "model.model_config.pet_config={freeze_include: [embeddings.wte]}",
            1,
            "freeze_include: 'embeddings.wte' matches no weight of the model; the closest one is ",
        ),
        ("model.model_config.pet_config={freeze_include: ['*']}", 1, "pet_config: all weights would be frozen"),
        ("checkpoint.load_path=x", 1, "checkpoint: remove it; set cpt.init_from"),
        ("use_skip_data_by_global_norm=True", 1, "use_skip_data_by_global_norm: remove it; set cpt.guards"),
        ("do_eval=True", 1, "do_eval: remove it; set cpt.validation"),
        ("train_dataset.seed=1", 1, "train_dataset: remove it; name the data in cpt.sources"),
        ("lr_schedule.type=CosineWithWarmUpLR", 1, "are both set; keep one"),
    ],
)
def test_tiny_config_refused(
    make_manifest: Callable[..., Manifest], assignment: str, world_size: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        resolve_run(TINY, make_manifest(), assignment, world_size=world_size)


@pytest.mark.parametrize(
    ("assignment", "world_size", "message"),
    [
        ("seed=1", 32, "= 64, but the launch has 32 devices"),
        ("parallel_config.model_parallel=16", 128, "model_parallel 16 does not divide num_key_value_heads 8"),
        ("parallel_config.pipeline_stage=3", 48, "pipeline_stage 3 does not divide num_hidden_layers 80"),
        ("model.model_config.offset=[1, 0, 0, 0]", 64, "but num_hidden_layers is 80"),
        ("cpt.global_batch_size=4", 64, "needs at least as many micro batches, got 2"),
    ],
)
def test_cluster_config_refused(
    make_manifest: Callable[..., Manifest], assignment: str, world_size: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_run(BIG, big_manifest(make_manifest), assignment, world_size=world_size)


def test_data_parallel_follows_from_the_launch(make_manifest: Callable[..., Manifest]) -> None:
    run = resolve_run(
        BIG,
        big_manifest(make_manifest),
        "parallel_config.data_parallel=null",
        "cpt.global_batch_size=512",
        world_size=256,
    )
    assert run.layout.data_parallel == 8


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"seq_length": 512}, "packed with sequence length 512, but cpt.seq_length is 256"),
        ({"vocab_size": 5000}, "tokenizer of 5000 entries, but the model has vocab_size 4096"),
        ({"eod_id": 1, "pad_id": 1}, "padded with its end-of-document token 1.*pack it again with this version"),
    ],
)
def test_dataset_of_another_kind_refused(
    make_manifest: Callable[..., Manifest], other: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_run(TINY, make_manifest(**other))


def test_validation_set_of_another_tokenizer_refused(make_manifest: Callable[..., Manifest]) -> None:
    with pytest.raises(ConfigError, match="different tokenizers"):
        resolve_run(TINY, make_manifest(), validation={"code": make_manifest(fingerprint="other")})


def test_steps_follow_from_epochs(make_manifest: Callable[..., Manifest]) -> None:
    run = resolve_run(
        TINY,
        make_manifest(num_rows=100),
        "cpt.train_tokens=null",
        "runner_config.epochs=3",
        "cpt.schedule.warmup_tokens=0",
    )
    assert run.budget.total_steps == 100 * 3 // 4


def test_padding_is_named_with_the_real_tokens(make_manifest: Callable[..., Manifest]) -> None:
    """Rows of one document each, 75 % padding: 292 steps are 299K tokens, of which a quarter is real."""
    manifest = make_manifest(num_rows=1000)
    (shard,) = manifest.shards
    padded = dataclasses.replace(
        manifest, packing="document", shards=(dataclasses.replace(shard, num_tokens=shard.num_tokens // 4),)
    )
    (note,) = (note for note in resolve_run(TINY, padded).notes if "padding" in note)
    assert note == (
        "warning: 75.0 % of the tokens are padding (code 75.0 %); budgets, intervals and tokens/s include it: about "
        "74.8K of the 299K tokens are real; for 299K real tokens, train on about 1.2M, or pack with --packing best-fit"
    )
    tight = dataclasses.replace(padded, packing="best-fit", shards=(shard,))
    assert not any("padding" in note for note in resolve_run(TINY, tight).notes)
    config = load_config(BIG, parse_assignments(["cpt.global_batch_size=256"]))
    (shard,) = big_manifest(make_manifest).shards
    padded = dataclasses.replace(
        big_manifest(make_manifest),
        packing="document",
        shards=(dataclasses.replace(shard, num_tokens=shard.num_tokens // 2),),
    )
    notes = resolve(config, world_size=64, sources=dict.fromkeys(config.cpt.sources, padded)).notes
    assert any("micro batches of a step have equal weights" in note for note in notes)


def test_fingerprint_contains_what_a_resume_depends_on(make_manifest: Callable[..., Manifest]) -> None:
    run = resolve_run(TINY, make_manifest())
    assert run.fingerprint() == resolve_run(TINY, make_manifest()).fingerprint()
    for assignment in (
        "seed=7",
        "cpt.train_tokens=900K",
        "optimizer.weight_decay=0.5",
        "model.model_config.hidden_size=64",
        "model.model_config.rms_norm_eps=1e-3",
        "runner_wrapper.max_grad_norm=2.0",
    ):
        assert run.fingerprint() != resolve_run(TINY, make_manifest(), assignment).fingerprint()
    assert run.fingerprint() != resolve_run(TINY, make_manifest(num_rows=999)).fingerprint()


def test_order_of_sources_is_part_of_the_fingerprint(make_manifest: Callable[..., Manifest]) -> None:
    first, second = make_manifest(num_rows=100), make_manifest(num_rows=200)
    config = load_config(TINY)
    one = resolve(config, world_size=1, sources={"a": first, "b": second}).fingerprint()
    other = resolve(config, world_size=1, sources={"b": second, "a": first}).fingerprint()
    assert one["sources"] != other["sources"]


def test_report_rank_is_on_the_last_pipeline_stage(make_manifest: Callable[..., Manifest]) -> None:
    assert resolve_run(BIG, big_manifest(make_manifest), world_size=64).report_rank == 48
    assert resolve_run(TINY, make_manifest()).report_rank == 0


@pytest.mark.parametrize(
    ("patience", "fits"),
    [
        ("2 validations", True),  # 292 steps, the validations after 100, 200 and 292
        ("3 validations", False),
        ("192 steps", True),
        ("193 steps", False),
        ("1B", False),
    ],
)
def test_patience_that_cannot_be_used_up_refused(
    make_manifest: Callable[..., Manifest], patience: str, fits: bool
) -> None:
    alarm = f"{{path: x, max_increase: 0.1, on_increase: stop, patience: {patience}}}"
    assignments = ("cpt.validation.every=100 steps", f"cpt.validation.sets={{general: {alarm}}}")
    if fits:
        assert resolve_run(TINY, make_manifest(), *assignments).budget.total_steps == 292
        return
    with pytest.raises(ConfigError, match=r"general\.patience: .* cannot be used up in a run of 292 steps"):
        resolve_run(TINY, make_manifest(), *assignments)
