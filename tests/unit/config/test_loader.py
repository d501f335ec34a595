"""Strict loading of configurations: problems are reported with file, line, dotted key and the nearest name."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ascend_cpt.config.loader import load_config, parse_assignments
from ascend_cpt.config.values import Patience
from ascend_cpt.config.yaml_file import parse_yaml_value, read_yaml
from ascend_cpt.errors import ConfigError

GOOD = """\
seed: 1
optimizer: {type: AdamW, weight_decay: 1e-2}
model:
  model_config: {model_type: qwen3, rms_norm_eps: 1e-6}
cpt:
  seq_length: 128
  global_batch_size: 8
  train_tokens: 1.6M
  schedule: {peak_lr: 1e-5}
  sources:
    train: {path: data/x}
"""


def write(folder: Path, text: str, name: str = "run.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_good_configuration(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD))
    assert config.cpt.train_tokens == 1_600_000
    assert config.cpt.schedule is not None and config.cpt.schedule.peak_lr == 1e-5
    assert config.cpt.sources["train"].path == "data/x"
    assert config.mindformers["optimizer"]["weight_decay"] == 0.01
    assert config.mindformers["model"]["model_config"]["rms_norm_eps"] == 1e-6
    assert "cpt" not in config.mindformers


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("schedule:", "schedul:", "run.yaml:9: cpt.schedul: unknown key; did you mean 'schedule'?"),
        ("seed: 1", "lr_schedul: {}", "run.yaml:1: lr_schedul: unknown key; did you mean 'lr_schedule'?"),
        (
            "weight_decay",
            "weight_decai",
            "run.yaml:2: optimizer.weight_decai: unknown key; did you mean 'weight_decay'?",
        ),
        ("rms_norm_eps", "rms_norm_ep", "run.yaml:4: model.model_config.rms_norm_ep: unknown key"),
        ("128", "long", "run.yaml:6: cpt.seq_length: expected a whole number, got 'long'"),
        ("1.6M", "lots", "run.yaml:8: cpt.train_tokens: expected a number such as 1.6M or 300B, got 'lots'"),
        ("1e-5", "high", "run.yaml:9: cpt.schedule.peak_lr: expected a number, got 'high'"),
        ("seed: 1", "seed: one", "run.yaml:1: seed: expected a whole number of at least 0, got 'one'"),
        ("seed: 1", "seed: .inf", "run.yaml:1: seed: expected a whole number of at least 0, got inf"),
        ("seed: 1", "output_dir: 5", "run.yaml:1: output_dir: expected text, got 5"),
        (
            "seed: 1",
            "runner_config: {batch_size: 0}",
            "runner_config.batch_size: expected a whole number above 0, got 0",
        ),
        ("128", "0", "run.yaml:6: cpt.seq_length: must be at least 1, got 0"),
        ("global_batch_size: 8", "global_batch_size: -4", "cpt.global_batch_size: must be at least 1, got -4"),
        ("  seq_length: 128\n", "", "cpt.seq_length: missing; add it"),
        ("{path: data/x}", "data/x", "run.yaml:11: cpt.sources.train: expected keys and values, got 'data/x'"),
        ("seed: 1", "seed: 1\nseed: 2", "run.yaml:2: seed is set twice"),
        ("seed: 1", "seed: [1", "run.yaml: not valid YAML"),
        ("seed: 1", "base_config: nowhere.yaml", "run.yaml:1: base_config names nowhere.yaml"),
        ("seed: 1", "base_config: run.yaml", "base_config includes itself"),
    ],
)
def test_problems_are_reported(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, GOOD.replace(old, new)))
    assert message in str(caught.value)


def test_all_problems_are_reported_together(tmp_path: Path) -> None:
    text = GOOD.replace("schedule:", "schedul:").replace("seed: 1", "seed: one").replace("128", "long")
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text))
    assert "3 problems" in str(caught.value) and len(str(caught.value).splitlines()) == 4


def test_missing_file_and_missing_section(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such configuration file"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="has no `cpt:` section"):
        load_config(write(tmp_path, "seed: 1\n"))


def test_base_config_is_merged_with_locations(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "base.yaml")
    path = write(tmp_path, "base_config: base.yaml\ncpt:\n  schedule: {final_lr: 1e-7}\n")
    config = load_config(path)
    assert config.cpt.schedule is not None
    assert (config.cpt.schedule.peak_lr, config.cpt.schedule.final_lr) == (1e-5, 1e-7)
    assert config.locate("cpt", "seq_length").endswith("base.yaml:6")
    assert config.locate("cpt", "schedule", "final_lr").endswith("run.yaml:3")


def test_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    config = load_config(path, parse_assignments(["cpt.train_tokens=2B", "seed=7", "cpt.schedule.peak_lr=2e-4"]))
    assert config.cpt.train_tokens == 2 * 10**9
    assert config.mindformers["seed"] == 7
    assert config.cpt.schedule is not None and config.cpt.schedule.peak_lr == 2e-4
    with pytest.raises(ConfigError, match=r"command line: cpt.seq_lenght: unknown key; did you mean 'seq_length'"):
        load_config(path, parse_assignments(["cpt.seq_lenght=1"]))
    with pytest.raises(ConfigError, match="expected key=value"):
        parse_assignments(["cpt.seq_length"])


def test_overrides_are_not_changed(tmp_path: Path) -> None:
    overrides = {"cpt.schedule": {"peak_lr": 2e-4}, "cpt.schedule.final_lr": 1e-6}
    load_config(write(tmp_path, GOOD), overrides)
    assert overrides == {"cpt.schedule": {"peak_lr": 2e-4}, "cpt.schedule.final_lr": 1e-6}


def test_replaced_mapping(tmp_path: Path) -> None:
    overrides = {"cpt.sources": {"other": {"path": "y"}}}
    assert list(load_config(write(tmp_path, GOOD), overrides).cpt.sources) == ["train", "other"]
    assert list(load_config(write(tmp_path, GOOD), overrides, replace=("cpt.sources",)).cpt.sources) == ["other"]


def test_tasks(tmp_path: Path) -> None:
    section = """  validation:
    tasks:
      mmlu: {path: mmlu.jsonl, kind: multiple_choice, few_shot: 5, few_shot_path: dev.jsonl, patience: 2B}
      lambada: {path: lambada.jsonl, kind: continuation, max_drop: 2e-2, on_drop: stop, max_items: 100}
"""
    validation = load_config(write(tmp_path, GOOD + section)).cpt.validation
    assert validation is not None and validation.sets == {}
    mmlu, lambada = validation.tasks["mmlu"], validation.tasks["lambada"]
    assert (mmlu.few_shot, mmlu.schema, mmlu.patience) == (5, None, Patience(count=2 * 10**9, unit="tokens"))
    assert (lambada.max_drop, lambada.on_drop, lambada.max_items, lambada.few_shot) == (0.02, "stop", 100, 0)
    for old, new, message in (
        ("few_shot: 5", "few_shot: -1", "tasks.mmlu.few_shot: must be at least 0, got -1"),
        ("max_items: 100", "max_items: 0", "tasks.lambada.max_items: must be at least 1, got 0"),
        ("kind: continuation, ", "", "cpt.validation.tasks.lambada.kind: missing; add it"),
        ("few_shot_path", "fewshot_path", "tasks.mmlu.fewshot_path: unknown key; did you mean 'few_shot_path'?"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_config(write(tmp_path, GOOD + section.replace(old, new)))
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: " + "[" * 5000, "nested deeper than 64 levels"),
        ("a: " + "[" * 70 + "]" * 70, "line 1: nested deeper than 64 levels"),
        ("\n".join(f"{' ' * depth}a:" for depth in range(70)), "nested deeper than 64 levels"),
        ("a: &a [*a]", "line 1: an alias is used within its own anchor"),
        ("a: &a\n  b: {c: *a}", "line 1: an alias is used within its own anchor"),
        (
            "a0: &a0 [1]\n" + "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 20)),
            "more than 100000 values, including those repeated by aliases",
        ),
        (
            "a0: &a0 {b: 1}\n"
            + "\n".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 20)),
            "more than 100000 values, including those repeated by aliases",
        ),
        ('a: "x\\0y"', "line 1: a string contains a NUL character"),
        ('"x\\0y": 1', "line 1: a string contains a NUL character"),
        ('a: "\\ud800"', "half of a surrogate pair"),
        ("a: \0", "not valid YAML"),
        ("a: 2001-99-99", "not valid YAML: month must be in 1..12"),
        ("a: !!int ''", "not valid YAML"),
        ("a: !!bool x", "not valid YAML"),
        ("a: !!timestamp x", "not valid YAML"),
        ("a: " + "1" * 5000, "not valid YAML"),
        ("a: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("? [a]\n: 1", "not valid YAML"),
        ("# " + "x" * (4 << 20), "has more than 4194304 bytes"),
    ],
)
def test_hostile_yaml_gives_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    with pytest.raises((ConfigError, ValueError), match=message):
        read_yaml(path)


@given(
    st.text()
    | st.lists(
        st.sampled_from([*"[]{}:,&*!|>-? \n\"'#%@`~\\0a1", "&a ", "*a ", "<<: ", "!!int ", "!!set ", "---\n"])
    ).map("".join)
)
def test_no_yaml_gives_a_traceback(text: str) -> None:
    with contextlib.suppress(ValueError):
        parse_yaml_value(text)
