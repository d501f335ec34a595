"""Which sets and tasks an evaluation has, with which tokenizer, and what of a run is still to be evaluated."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ascend_cpt.config.loader import load_config, parse_assignments
from ascend_cpt.config.task_schema import TaskConfig
from ascend_cpt.data.packed.manifest import Manifest
from ascend_cpt.data.packed.network_inputs import RowFormat
from ascend_cpt.data.tokenizing.files import fingerprint_tokenizer, open_tokenizer
from ascend_cpt.data.tokenizing.reference_engines import adds_bos
from ascend_cpt.errors import CheckpointError, ConfigError, DataError
from ascend_cpt.monitor.history import read_evaluations, read_metrics
from ascend_cpt.monitor.record import Judged, ValidationRecord, to_values
from ascend_cpt.run.evaluation.nodes import RunFolders
from ascend_cpt.run.evaluation.plan import EvaluationSettings, make_plan, read_settings
from ascend_cpt.run.evaluation.tasks import describe_tasks, find_tokenizer, load_tasks
from ascend_cpt.run.evaluation.watching import (
    append_records,
    drop_recorded,
    hold_watch_lock,
    identify,
    list_pending,
    request_stop,
    take_stop_request,
)
from ascend_cpt.run.mindformers_yaml import compile_row_settings

REPOSITORY = Path(__file__).resolve().parents[4]
REFERENCE = REPOSITORY / "tests/reference"
CHOICES = TaskConfig(path=str(REFERENCE / "tasks/plain_choices.jsonl"), kind="multiple_choice")
MakeManifest = Callable[..., Manifest]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    shutil.copy(REFERENCE / "tasks/tokenizer.json", folder)
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>", "bos_token": "<s>"}', encoding="utf-8")
    return folder


def load(tokenizer: Path, seq_length: int = 64, **manifests: Manifest) -> Any:
    return load_tasks(
        {"choices": CHOICES},
        tokenizer=tokenizer,
        tokenizer_type="PretrainedFromHF",
        seq_length=seq_length,
        manifests=manifests,
    )


def packed_with(manifest: Manifest, fingerprint: str) -> Manifest:
    return dataclasses.replace(manifest, tokenizer=dataclasses.replace(manifest.tokenizer, fingerprint=fingerprint))


def test_tasks_need_the_tokenizer_of_the_datasets(make_manifest: MakeManifest, tokenizer: Path) -> None:
    same = packed_with(make_manifest(), fingerprint_tokenizer(tokenizer))
    (task,) = load(tokenizer, held=same)
    assert task.num_items and not task.too_long
    with pytest.raises(ConfigError, match="is not the tokenizer that held was packed with"):
        load(tokenizer, held=packed_with(same, "another"))


def test_items_with_the_padding_token_are_refused(tokenizer: Path) -> None:
    """The network ignores its labels, so the item could not be scored."""
    (task,) = load(tokenizer)
    used = task.requests[0].continuation[0]
    vocabulary = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    named = {"eos_token": "</s>", "pad_token": next(text for text, number in vocabulary.items() if number == used)}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(named), encoding="utf-8")
    with pytest.raises(
        DataError, match=rf"plain_choices\.jsonl:\d+: contains token {used}, which is the padding token"
    ):
        load(tokenizer)


def test_description_has_the_cost_and_the_items_left_out(tokenizer: Path) -> None:
    (task,) = load(tokenizer)
    (line,) = describe_tasks([task], 64)
    assert f"{task.num_items} items, {len(task.requests)} rows of 64 tokens" in line and "left out" not in line
    longest = [0] * task.num_items
    for r in task.requests:
        longest[r.item] = max(longest[r.item], len(r.context) + len(r.continuation) - 1)
    short = min(longest)
    (cut,) = load(tokenizer, seq_length=short)
    (line,) = describe_tasks([cut], short)
    assert f"{len(cut.too_long)} items longer than a row left out: " in line and ".jsonl:" in line


def test_bos_is_added_by_the_rule_in_the_file(tokenizer: Path) -> None:
    path = tokenizer / "tokenizer.json"
    assert not adds_bos(open_tokenizer("PretrainedFromHF", tokenizer))
    content = json.loads(path.read_text(encoding="utf-8"))
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    assert adds_bos(open_tokenizer("PretrainedFromHF", tokenizer))


def test_tokenizer_of_the_initial_weights_is_the_default(tokenizer: Path) -> None:
    def find(*assignments: str) -> Path:
        task = f"cpt.validation.tasks.a={{path: {CHOICES.path}, kind: multiple_choice}}"
        tiny = REPOSITORY / "configs/qwen3/cpt_qwen3_tiny.yaml"
        return find_tokenizer(load_config(tiny, parse_assignments([task, *assignments])))

    assert find(f"cpt.init_from={tokenizer}") == tokenizer
    assert find(f"cpt.init_from={tokenizer}", "cpt.validation.tokenizer=elsewhere") == Path("elsewhere")
    with pytest.raises(ConfigError, match=r"cpt\.validation\.tasks: need a tokenizer; set cpt\.validation\.tokenizer"):
        find("cpt.init_from=random")


def make_settings(**changes: Any) -> EvaluationSettings:
    values: dict[str, Any] = {
        "sets": {}, "tasks": {"choices": CHOICES}, "tokenizer": None, "tokenizer_type": "PretrainedFromHF",
        "max_rows": None, "seq_length": None, "document_attention": "across", "device": "CPU", "dtype": "float32",
        "batch_size": 2, "tensor_parallel": 0, "model": None, "context": {},
    }  # fmt: skip
    return EvaluationSettings(**{**values, **changes})


def test_rows_of_tasks_are_as_long_as_the_longest_request(tokenizer: Path) -> None:
    plan = make_plan(REFERENCE / "qwen3", make_settings(tokenizer=tokenizer), world_size=2)
    assert plan.row_format.seq_length == 64 and plan.layout.data_parallel == 2
    assert plan.model["compute_dtype"] == "float32" and "torch_dtype" not in plan.model
    longer = make_plan(REFERENCE / "qwen3", make_settings(tokenizer=tokenizer, seq_length=128), world_size=1)
    assert longer.row_format.seq_length == 128


def test_weights_are_split_over_a_common_divisor_of_the_devices(tokenizer: Path) -> None:
    for tensor, world_size, expected in ((8, 8, (1, 8)), (8, 4, (1, 4)), (4, 6, (3, 2)), (0, 4, (4, 1))):
        settings = make_settings(tokenizer=tokenizer, device="Ascend", tensor_parallel=tensor)
        layout = make_plan(REFERENCE / "qwen3", settings, world_size=world_size).layout
        assert (layout.data_parallel, layout.tensor_parallel) == expected


@pytest.mark.parametrize(
    ("name", "expected"), [("llama3/cpt_llama3_70b", 8), ("qwen3/cpt_qwen3_8b", 4), ("qwen3/cpt_qwen3_0_6b_4k", 1)]
)
def test_tensor_parallelism_splits_what_stages_split_in_training(name: str, expected: int) -> None:
    config = load_config(REPOSITORY / f"configs/{name}.yaml")
    assert read_settings(config, make_settings(tasks={})).tensor_parallel == expected
    assert read_settings(config, make_settings(tasks={}, tensor_parallel=2)).tensor_parallel == 2


def test_configuration_must_be_of_the_model(tokenizer: Path) -> None:
    config = load_config(REPOSITORY / "configs/qwen3/cpt_qwen3_tiny.yaml", {})
    settings = read_settings(config, make_settings(tokenizer=tokenizer, device=""))
    assert settings.device == "CPU" and settings.seq_length == config.cpt.seq_length
    assert set(settings.sets) == set(config.cpt.validation.sets if config.cpt.validation else ())
    with pytest.raises(CheckpointError, match=r"qwen3: a different model: .*hidden_size is 48 in config\.json and 128"):
        make_plan(REFERENCE / "qwen3", settings, world_size=1)
    with pytest.raises(ConfigError, match="nothing to evaluate"):
        make_plan(REFERENCE / "qwen3", make_settings(tasks={}), world_size=1)


def test_a_configuration_may_write_the_model_of_a_folder_in_another_way(tokenizer: Path) -> None:
    """An export contains defaults, such as hidden_act, that a configuration may omit."""
    model = json.loads((REFERENCE / "qwen3/config.json").read_text(encoding="utf-8"))
    del model["hidden_act"], model["sliding_window"], model["use_cache"]
    plan = make_plan(REFERENCE / "qwen3", make_settings(tokenizer=tokenizer, model=model), world_size=1)
    assert plan.model == model
    with pytest.raises(CheckpointError, match="rope is "):
        make_plan(
            REFERENCE / "qwen3", make_settings(tokenizer=tokenizer, model={**model, "rope_theta": 5e5}), world_size=1
        )


def test_rows_are_not_longer_than_the_window_of_the_model(tokenizer: Path) -> None:
    plan = make_plan(REFERENCE / "mistral", make_settings(tokenizer=tokenizer, seq_length=40), world_size=1)
    assert plan.row_format.seq_length == 40
    with pytest.raises(ConfigError, match="mistral: sliding_window: 40 tokens, fewer than the rows of 64"):
        make_plan(REFERENCE / "mistral", make_settings(tokenizer=tokenizer), world_size=1)


def write_resolved(run: Path, boundaries: str) -> Path:
    """Write a checkpoint and the resolved.yaml of a run with two uneven stages; return the checkpoint."""
    model = json.loads((REFERENCE / "qwen3/config.json").read_text(encoding="utf-8"))
    settings = compile_row_settings(RowFormat(seq_length=64, pad_id=127, eod_id=1, boundaries=boundaries))
    loader = {"row_format": RowFormat(seq_length=64, pad_id=127, eod_id=1, boundaries=boundaries).to_record()}
    stages = {"offset": [1, -1]}
    sections = {"model": {"model_config": {**model, **settings, **stages}}, "train_dataset": {"data_loader": loader}}
    save_checkpoint(run, 8)
    (run / "resolved.yaml").write_text(yaml.safe_dump(sections), encoding="utf-8")
    return run / "checkpoint/iteration_00000008"


@pytest.mark.parametrize(("boundaries", "expected"), [("none", "none"), ("mask", "mask"), ("ends", "mask")])
def test_attention_is_that_of_the_run(boundaries: str, expected: str, tokenizer: Path, tmp_path: Path) -> None:
    """Its settings for rows on its device are replaced by those of the evaluation."""
    checkpoint = write_resolved(tmp_path, boundaries)
    settings = make_settings(tokenizer=tokenizer, document_attention=None)
    for path in (checkpoint, tmp_path):
        plan = make_plan(path, settings, world_size=1)
        assert plan.row_format.boundaries == expected
        assert not any(key.startswith("use_eod") for key in plan.model)
        assert "offset" not in plan.model, "the network has no stages"
    across = make_plan(checkpoint, dataclasses.replace(settings, document_attention="across"), world_size=1)
    assert across.row_format.boundaries == "none"
    plan = make_plan(REFERENCE / "qwen3", settings, world_size=1)
    assert plan.row_format.boundaries == "none", "of a Hugging Face folder nothing is known"


def save_checkpoint(run: Path, step: int, position: int | None = None) -> None:
    folder = run / f"checkpoint/iteration_{step:08d}"
    folder.mkdir(parents=True)
    state = {
        "step": step, "total_steps": 8, "tokens": step * 64, "position": position or step, "fingerprint": {},
        "files": {}, "version": 1,
    }  # fmt: skip
    (folder / "cpt_state.json").write_text(json.dumps(state), encoding="utf-8")


def test_checkpoints_without_all_records_are_pending(tmp_path: Path) -> None:
    for step in (2, 4, 8):
        save_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint/iteration_00000006").mkdir()
    names = [("validation", "a"), ("validation", "b")]
    run = RunFolders(folders=(tmp_path,), main=tmp_path)
    assert list_pending(run, names) == [2, 4, 8]
    for name in ("a", "b"):
        append_records(tmp_path, [ValidationRecord(step=4, name=name, loss=1.0, num_labels=3)], identify(run.locate(4)))
    append_records(tmp_path, [ValidationRecord(step=8, name="a", loss=1.0, num_labels=3)], identify(run.locate(8)))
    assert list_pending(run, names) == [2, 8]
    assert list_pending(run, names[:1]) == [2]
    again = [ValidationRecord(step=8, name=name, loss=1.0, num_labels=3) for name in ("a", "b")]
    assert [record.name for record in drop_recorded(tmp_path, again, identify(run.locate(8)))] == ["b"]


def test_a_step_that_was_trained_again_is_evaluated_again(tmp_path: Path) -> None:
    """The folder `checkpoint` was deleted, but evaluations.jsonl was kept; the run starts again."""
    names = [("validation", "a")]
    run = RunFolders(folders=(tmp_path,), main=tmp_path)
    save_checkpoint(tmp_path, 4)
    first = identify(run.locate(4))
    append_records(tmp_path, [ValidationRecord(step=4, name="a", loss=1.0, num_labels=3)], first)
    assert list_pending(run, names) == []
    shutil.rmtree(tmp_path / "checkpoint")
    save_checkpoint(tmp_path, 4, position=5)
    second = identify(run.locate(4))
    assert second != first and list_pending(run, names) == [4]
    again: list[Judged] = [ValidationRecord(step=4, name="a", loss=2.0, num_labels=3)]
    assert drop_recorded(tmp_path, again, second) == again
    append_records(tmp_path, again, second)
    assert list_pending(run, names) == []
    # Reports show the newer one; both remain in the file.
    assert [record["loss"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [2.0]
    assert [record["loss"] for record in read_evaluations(tmp_path)] == [1.0, 2.0]


def test_records_of_the_run_and_of_earlier_versions_count_for_any_checkpoint(tmp_path: Path) -> None:
    run = RunFolders(folders=(tmp_path,), main=tmp_path)
    save_checkpoint(tmp_path, 4)
    for file, name in (("metrics.jsonl", "a"), ("evaluations.jsonl", "b")):
        record = ValidationRecord(step=4, name=name, loss=1.0, num_labels=3)
        (tmp_path / file).write_text(json.dumps(to_values(record)) + "\n", encoding="utf-8")
    assert list_pending(run, [("validation", "a"), ("validation", "b")]) == []
    # What a crash left of a line does not end up in the middle of the next one.
    with (tmp_path / "evaluations.jsonl").open("a") as file:
        file.write('{"kind": "validation", "st')
    append_records(tmp_path, [ValidationRecord(step=4, name="c", loss=1.0, num_labels=3)], identify(run.locate(4)))
    assert [record["name"] for record in read_evaluations(tmp_path)] == ["b", "c"]


def test_one_watcher_at_a_time_and_its_request(tmp_path: Path) -> None:
    with hold_watch_lock(tmp_path), pytest.raises(CheckpointError, match="another process is already evaluating"):
        with hold_watch_lock(tmp_path):
            pass
    with hold_watch_lock(tmp_path):
        pass
    assert take_stop_request(tmp_path) is None
    request_stop(tmp_path, "stopped because")
    assert take_stop_request(tmp_path) == "stopped because"
