"""`cpt.document_attention`: its MindFormers settings, and refused configurations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from ascend_cpt.config.loader import load_config, parse_assignments
from ascend_cpt.data.packed.manifest import Manifest
from ascend_cpt.errors import ConfigError
from ascend_cpt.run.mindformers_yaml import make_mindformers_config
from ascend_cpt.run.resolve import resolve
from ascend_cpt.run.resolved_run import ResolvedRun

REPOSITORY = Path(__file__).resolve().parents[3]
TINY = REPOSITORY / "configs/qwen3/cpt_qwen3_tiny.yaml"
BIG = REPOSITORY / "tests/even_layouts/cpt_llama3_70b.yaml"
WITHIN = "cpt.document_attention=within"

MakeManifest = Callable[..., Manifest]


def resolve_run(path: Path, manifest: Manifest, *assignments: str, validation: Manifest | None = None) -> ResolvedRun:
    config = load_config(path, parse_assignments(assignments))
    return resolve(
        config,
        world_size=1 if path == TINY else 64,
        sources={"code": manifest},
        validation={"general": validation} if validation else {},
    )


def resolve_big(make_manifest: MakeManifest, *assignments: str) -> ResolvedRun:
    length = 1024 if "cpt.seq_length=1024" in assignments else 8192
    manifest = make_manifest(num_rows=10**7, seq_length=length, vocab_size=128256)
    return resolve_run(BIG, manifest, WITHIN, *assignments)


def test_default_adds_no_settings(make_manifest: MakeManifest) -> None:
    sections = make_mindformers_config(resolve_run(TINY, make_manifest()), resume_from=None, init_from=None)
    assert sections["train_dataset"]["input_columns"] == ["input_ids", "labels"]
    assert not {"use_eod_reset", "use_eod_attn_mask_compression"} & sections["model"]["model_config"].keys()


def test_cpu_inputs_are_positions_and_a_mask(make_manifest: MakeManifest) -> None:
    sections = make_mindformers_config(resolve_run(TINY, make_manifest(), WITHIN), resume_from=None, init_from=None)
    columns = ["input_ids", "labels", "position_ids", "attention_mask"]
    dataset = sections["train_dataset_task"]["dataset_config"]
    assert dataset["input_columns"] == dataset["construct_args_key"] == columns
    assert sections["model"]["model_config"]["use_eod_reset"] is True
    assert dataset["data_loader"]["row_format"]["eod_id"] == 0


def test_ascend_inputs_are_the_ends_of_documents(make_manifest: MakeManifest) -> None:
    sections = make_mindformers_config(resolve_big(make_manifest), resume_from=None, init_from=None)
    columns = ["input_ids", "labels", "actual_seq_len"]
    dataset = sections["train_dataset"]
    assert dataset["input_columns"] == dataset["construct_args_key"] == columns
    dp = sections["parallel_config"]["data_parallel"]
    assert sections["parallel"]["dataset_strategy"] == [[dp, 1]] * 3
    assert sections["model"]["model_config"]["use_eod_attn_mask_compression"] is True
    assert "use_eod_reset" not in sections["model"]["model_config"]


def test_option_is_part_of_the_fingerprint(make_manifest: MakeManifest) -> None:
    across, within = resolve_run(TINY, make_manifest()), resolve_run(TINY, make_manifest(), WITHIN)
    assert across.fingerprint() != within.fingerprint()


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("cpt.seq_length=1024", "at least 2048 "),
        ("model.model_config.use_ring_attention=True", "not supported by ring attention"),
        ("model.model_config.use_flash_attention=False", "needs flash attention"),
        ("model.model_config.use_eod_reset=True", "use_eod_reset: remove it; set cpt.document_attention"),
    ],
)
def test_unsupported_on_ascend_is_refused(make_manifest: MakeManifest, assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_big(make_manifest, assignment)


def test_other_context_parallel_algorithm_is_refused(make_manifest: MakeManifest) -> None:
    changes = ["parallel_config.context_parallel=2", "parallel_config.model_parallel=4"]
    assert resolve_big(make_manifest, *changes).row_format.boundaries == "ends"
    with pytest.raises(ConfigError, match="not tested with parallel_config.context_parallel_algo ulysses_cp"):
        resolve_big(make_manifest, *changes, "parallel_config.context_parallel_algo=ulysses_cp")


def test_misspelled_choice_is_refused(make_manifest: MakeManifest) -> None:
    with pytest.raises(ConfigError, match="'inside' is unknown; choose across or within"):
        resolve_run(TINY, make_manifest(), "cpt.document_attention=inside")


def test_datasets_without_boundaries_or_with_different_ones_are_refused(make_manifest: MakeManifest) -> None:
    without_eod = dataclasses.replace(make_manifest(), settings={"append_eod": False})
    with pytest.raises(ConfigError, match="code was packed without end-of-document tokens"):
        resolve_run(TINY, without_eod, WITHIN)
    assert resolve_run(TINY, without_eod).row_format.boundaries == "none"
    with pytest.raises(ConfigError, match=r"end documents with different tokens: code \(0\), general \(5\)"):
        resolve_run(TINY, make_manifest(), WITHIN, validation=make_manifest(eod_id=5))


def test_validation_rows_may_be_shorter(make_manifest: MakeManifest) -> None:
    run = resolve_run(TINY, make_manifest(), validation=make_manifest(seq_length=128))
    assert run.validation[0].seq_length == 128
    with pytest.raises(ConfigError, match="general: packed with sequence length 512"):
        resolve_run(TINY, make_manifest(), validation=make_manifest(seq_length=512))
    with pytest.raises(ConfigError, match="code: packed with sequence length 128"):
        resolve_run(TINY, make_manifest(seq_length=128))


def test_mmap_set_is_cut_into_rows_of_the_configured_length(make_manifest: MakeManifest) -> None:
    whole = dataclasses.replace(make_manifest(), output_format="mmap", seq_length=None)
    key = "cpt.validation.sets.general.seq_length"
    assert resolve_run(TINY, make_manifest(), validation=whole).validation[0].seq_length == 256
    run = resolve_run(TINY, make_manifest(), f"{key}=64", validation=whole)
    assert run.validation[0].seq_length == 64 and run.validation[0].num_rows == -(-1000 * 257 // 65)
    with pytest.raises(ConfigError, match="general.seq_length: 512, more than cpt.seq_length 256; lower it"):
        resolve_run(TINY, make_manifest(), f"{key}=512", validation=whole)
    with pytest.raises(ConfigError, match="seq_length: 64, but the dataset has rows of 256 tokens; remove the key"):
        resolve_run(TINY, make_manifest(), f"{key}=64", validation=make_manifest())


def test_note_on_rows_longer_than_max_position_embeddings(make_manifest: MakeManifest) -> None:
    longer = resolve_run(TINY, make_manifest(seq_length=512), "cpt.seq_length=512")
    assert any(
        "cpt.seq_length 512 is more than model.model_config.max_position_embeddings (256)" in note
        for note in longer.notes
    )
    assert not any("max_position_embeddings" in note for note in resolve_run(TINY, make_manifest()).notes)


def test_note_on_rows_longer_than_yarn_scales_for(make_manifest: MakeManifest) -> None:
    yarn = "model.model_config.rope_scaling={rope_type: yarn, factor: 2.0, original_max_position_embeddings: 128}"
    manifest = make_manifest(seq_length=512)
    positions = "model.model_config.max_position_embeddings=512"
    run = resolve_run(TINY, manifest, "cpt.seq_length=512", yarn, positions)
    (note,) = (note for note in run.notes if "position" in note)
    assert note == (
        "warning: cpt.seq_length 512 is more than the 256 tokens for which YaRN scales the rotary frequencies (factor "
        "2 x original_max_position_embeddings 128); raise rope_scaling.factor"
    )
    enough = resolve_run(TINY, manifest, "cpt.seq_length=512", yarn.replace("2.0", "4.0"), positions)
    assert not any("position" in note for note in enough.notes)


def test_datasets_padded_with_different_tokens_are_refused(make_manifest: MakeManifest) -> None:
    with pytest.raises(ConfigError, match=r"padded with different tokens: code \(1\), general \(7\)"):
        resolve_run(TINY, make_manifest(), validation=make_manifest(pad_id=7))
