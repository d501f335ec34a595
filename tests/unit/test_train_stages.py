"""Stages are resolved before the first one starts, run in order, held, and skipped when complete. No real training."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from ascend_cpt import train_stages as stages_module
from ascend_cpt.checkpoint.state import RunState, write_state
from ascend_cpt.config.loader import load_config
from ascend_cpt.data.packed.manifest import Manifest, Shard, manifest_path, write_manifest
from ascend_cpt.data.tokenizing.info import TokenizerInfo
from ascend_cpt.errors import CheckpointError, ConfigError
from ascend_cpt.monitor.record import TaskRecord, ValidationRecord, to_values
from ascend_cpt.run.export.target import ExportRecord, write_record
from ascend_cpt.run.launch.command_line import collect_overrides, parse_arguments
from ascend_cpt.run.launch.stages import StageOptions
from ascend_cpt.train_stages import EXIT_HELD, Stage, resolve_stages, train_stages

REPOSITORY = Path(__file__).resolve().parents[2]
ADVANCE = {"advance_when": {"set": "general", "max_increase": 0.02}}
NEEDLE = {"kind": "needle", "lengths": [256], "depths": 3}
"""A needle task; the path is that of the sources."""


def write_dataset(folder: Path, seq_length: int) -> str:
    """Write a manifest with files of one byte; return its prefix."""
    prefix = folder / f"rows_{seq_length}"
    for name in (f"{prefix.name}.mindrecord0", f"{prefix.name}.mindrecord0.db"):
        (folder / name).write_bytes(b"x")
    shard = Shard(
        file=f"{prefix.name}.mindrecord0",
        size_bytes=1,
        sha256="",
        index_file=f"{prefix.name}.mindrecord0.db",
        index_size_bytes=1,
        index_sha256="",
        num_rows=1000,
        num_tokens=1000 * (seq_length + 1),
        num_documents=1000,
        text_bytes=1000,
    )
    tokenizer = TokenizerInfo(type="x", name="x", fingerprint="x", vocab_size=4096, eod_id=0, pad_id=1)
    manifest = Manifest(
        key="text", output_format="mindrecord", seq_length=seq_length, tokenizer=tokenizer, shards=(shard,)
    )
    write_manifest(manifest, manifest_path(prefix))
    return str(prefix)


@pytest.fixture
def write_stages(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a file of two stages, 256 and 512; arguments are merged into the two."""
    short, long = write_dataset(tmp_path, 256), write_dataset(tmp_path, 512)
    bases = [str(REPOSITORY / f"configs/base/{name}.yaml") for name in ("cpu_tiny", "qwen3_tiny")]
    config = {
        "base_config": bases,
        "output_dir": str(tmp_path / "output"),
        "cpt": {
            "init_from": "random",
            "train_tokens": 10 * 4 * 256,
            "schedule": {"peak_lr": 1e-3},
            "sources": {"code": {"path": short}},
            "validation": {"sets": {"general": {"path": short}}},
        },
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    longer = {"cpt.seq_length": 512, "cpt.sources": {"code": {"path": long}}, "model.model_config.rope_theta": 4e4}

    def write(first: dict[str, Any] | None = None, second: dict[str, Any] | None = None) -> Path:
        one = {"name": "256", "config": "run.yaml", **(first or {})}
        two = {"name": "512", "config": "run.yaml", **(second or {})}
        two["set"] = {**longer, **two.get("set", {})}
        path = tmp_path / "two.yaml"
        path.write_text(yaml.safe_dump({"stages": [one, two]}), encoding="utf-8")
        return path

    return write


class FakeLauncher:
    """Replaces the launcher: saves the final checkpoint and the given validation losses without training."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.commands: list[str] = []
        self.losses = {"256": (5.0, 5.01), "512": (5.01, 5.0)}
        self.needle: float | None = None
        """Score of the needle task after a stage; the score before it is 1."""
        self.code = 0

    def __call__(self, arguments: Sequence[str]) -> int:
        self.commands.append(arguments[0])
        stage = self._find(arguments[0])
        if self.code == 0:
            self._save(stage)
        return self.code

    def _find(self, command: str) -> Stage:
        for stage in resolve_stages(self.path, [], StageOptions()):
            if command.removesuffix(" --reshard").removesuffix(" --extend") == stage.command:
                return stage
        raise AssertionError(command)

    def _save(self, stage: Stage) -> None:
        plan = stage.run
        steps = plan.budget.total_steps
        folder = plan.checkpoint_root / f"iteration_{steps:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        state = RunState(step=steps, total_steps=steps, tokens=1, position=1, fingerprint=plan.fingerprint())
        write_state(folder, state)
        before, after = self.losses[stage.name]
        metrics = plan.run_dir / "metrics.jsonl"
        values = [(0, before)] * (not metrics.exists()) + [(steps, after)]
        with metrics.open("a", encoding="utf-8") as file:
            for step, loss in values:
                held = ValidationRecord(step=step, name="general", loss=loss, num_labels=9)
                file.write(json.dumps(to_values(held)) + "\n")
                if self.needle is not None:
                    scores = TaskRecord(
                        step=step, name="find", metric="acc", score=self.needle if step else 1.0, num_items=9, values={}
                    )
                    file.write(json.dumps(to_values(scores)) + "\n")


@pytest.fixture
def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeLauncher:
    fake = FakeLauncher(tmp_path / "two.yaml")
    monkeypatch.setattr(stages_module, "run_launcher", fake)
    monkeypatch.setattr(stages_module, "VISIBILITY_TIMEOUT_S", 0.0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    return fake


def run(path: Path, **options: Any) -> int:
    return train_stages(path, [], StageOptions(**options))


def test_each_stage_starts_from_the_one_before(write_stages: Callable[..., Path], launcher: FakeLauncher) -> None:
    path = write_stages(ADVANCE)
    assert run(path) == 0
    assert len(launcher.commands) == 2
    first, second = resolve_stages(path, [], StageOptions())
    assert first.run.run_dir.name == "two_256" and second.run.config.cpt.init_from == str(first.run.run_dir)
    assert second.run.model["rope_theta"] == 4e4 and first.run.model["rope_theta"] == 1e4
    assert run(path) == 0
    assert len(launcher.commands) == 2, "complete stages are skipped"


def test_a_complete_stage_without_its_export_is_launched(
    write_stages: Callable[..., Path], launcher: FakeLauncher, tmp_path: Path
) -> None:
    target = tmp_path / "exported"
    path = write_stages({"set": {"cpt.export": {"to": str(target)}}})
    assert run(path) == 0
    launcher.commands.clear()
    assert run(path) == 0
    assert len(launcher.commands) == 1 and "two_256" in launcher.commands[0]
    first, _ = resolve_stages(path, [], StageOptions())
    target.mkdir()
    (target / "model.safetensors").touch()
    step = first.run.budget.total_steps
    write_record(first.run.run_dir, ExportRecord(to=str(target), step=step, verified=True))
    launcher.commands.clear()
    assert run(path) == 0 and not launcher.commands


def test_nodes_without_shared_storage_launch_complete_stages(
    write_stages: Callable[..., Path], launcher: FakeLauncher
) -> None:
    own = {"set": {"cpt.storage.shared": False}}
    path = write_stages(own, own)
    for launch, num_more in ((["2"], 2), (["2"], 0), (["2", "1", "10.0.0.1", "8118", "1"], 2)):
        launcher.commands.clear()
        assert train_stages(path, launch, StageOptions()) == 0
        assert len(launcher.commands) == num_more


def test_the_command_gives_the_checked_configuration(write_stages: Callable[..., Path], launcher: FakeLauncher) -> None:
    """The command, parsed by the launcher and run_cpt.py, gives the configuration that was checked."""
    from ascend_cpt.cluster.launch.arguments import parse_launch

    path = write_stages(second={"set": {"cpt.schedule.peak_lr": 1e-5, "cpt.validation": None}})
    for stage in resolve_stages(path, ["2"], StageOptions()):
        words = parse_launch([stage.command, "2"], {}, Path.cwd()).script_arguments
        args = parse_arguments(list(words))
        config = load_config(args.config, collect_overrides(args))
        assert config.cpt == stage.run.config.cpt and config.mindformers == stage.run.config.mindformers


def test_a_failed_stage_returns_its_exit_code_and_is_retried(
    write_stages: Callable[..., Path], launcher: FakeLauncher
) -> None:
    path = write_stages()
    launcher.code = 7
    assert run(path) == 7 and len(launcher.commands) == 1
    launcher.code = 0
    assert run(path) == 0 and launcher.commands[0] == launcher.commands[1]


def test_a_stage_is_held_until_the_loss_has_recovered(
    write_stages: Callable[..., Path], launcher: FakeLauncher, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_stages(ADVANCE)
    launcher.losses["256"] = (5.0, 5.3)
    assert run(path) == EXIT_HELD == 3
    assert run(path) == EXIT_HELD, "the same again"
    assert len(launcher.commands) == 1
    line = capsys.readouterr().out.splitlines()[-1]
    assert "stage 256: held: loss of general: 5.3000, +0.3000 from 5.0000" in line
    assert f"Raise its cpt.train_tokens in {path}" in line and "--extend 256" in line and "--advance 256" in line
    # After more training it recovers.
    path = write_stages({**ADVANCE, "set": {"cpt.train_tokens": 20 * 4 * 256}})
    with pytest.raises(CheckpointError, match="give --extend to make the run longer"):
        run(path)
    launcher.losses["256"] = (5.0, 5.02)
    assert run(path, extend="256") == 0
    assert launcher.commands[1].endswith(" --extend") and "stage 256: may advance: loss of" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="--extend 256: stage 512 has already started from its weights"):
        run(path, extend="256")


def test_a_held_stage_can_be_overridden(write_stages: Callable[..., Path], launcher: FakeLauncher) -> None:
    path = write_stages(ADVANCE)
    launcher.losses["256"] = (5.0, float("nan"))
    assert run(path) == EXIT_HELD
    assert run(path, advance="256") == 0 and len(launcher.commands) == 2


def with_needles(folder: Path, rule: dict[str, Any], *names: str) -> dict[str, Any]:
    tasks = {name: {**NEEDLE, "path": str(folder / "rows_256")} for name in names}
    return {"advance_when": rule, "set": {"cpt.validation.tasks": tasks, "cpt.validation.tokenizer": "tokenizer"}}


def test_a_stage_without_a_tokenizer_for_its_tasks_is_named_before_anything_starts(
    write_stages: Callable[..., Path], launcher: FakeLauncher, tmp_path: Path
) -> None:
    stage = with_needles(tmp_path, {"needle": 0.95}, "find")
    second = {"set": {"cpt.validation.tasks": stage["set"]["cpt.validation.tasks"]}}
    with pytest.raises(ConfigError, match="cpt.validation.tasks: need a tokenizer; set cpt.validation.tokenizer"):
        run(write_stages(stage, second))
    assert not launcher.commands


def test_a_stage_is_held_until_the_needle_is_found(
    write_stages: Callable[..., Path], launcher: FakeLauncher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_stages(with_needles(tmp_path, {"needle": 0.95}, "find"))
    launcher.needle = 0.9499
    assert run(path) == EXIT_HELD and len(launcher.commands) == 1
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("stage 256: held: acc of find: 0.9499 (required: 0.95). Raise its cpt.train_tokens in ")
    assert run(path, advance="256") == 0 and len(launcher.commands) == 2
    assert "stage 256: not ready, continuing because of --advance: acc of find: 0.9499" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("loss", "needle", "message"),
    [
        (5.0, 0.95, "stage 256: may advance: loss of general: 5.0000, .*; acc of find: 0.9500 .required: 0.95."),
        (5.3, 0.95, "stage 256: held: loss of general: 5.3000, [^;]*$"),
        (5.0, 0.5, "stage 256: held: acc of find: 0.5000 .required: 0.95.. Raise"),
        (5.3, float("nan"), "stage 256: held: loss of general: 5.3000, .*; acc of find: nan .required: 0.95.. Raise"),
    ],
)
def test_all_conditions_must_be_met(
    write_stages: Callable[..., Path],
    launcher: FakeLauncher,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    loss: float,
    needle: float,
    message: str,
) -> None:
    rule = {**ADVANCE["advance_when"], "needle": 0.95, "needle_task": "find"}
    launcher.losses["256"], launcher.needle = (5.0, loss), needle
    code = run(write_stages(with_needles(tmp_path, rule, "find", "other")))
    assert code == (0 if "may advance" in message else EXIT_HELD)
    assert any(re.search(message, line) for line in capsys.readouterr().out.splitlines())


def test_a_missing_score_is_reported(write_stages: Callable[..., Path], launcher: FakeLauncher, tmp_path: Path) -> None:
    path = write_stages(with_needles(tmp_path, {"needle": 0.95}, "find"))
    with pytest.raises(CheckpointError, match=r"no score of task find at step 10; evaluate it with tools/evaluate\.py"):
        run(path)
    assert run(path, advance="256") == 0


@pytest.mark.parametrize(
    ("rule", "names", "message"),
    [
        ({"needle": 0.9}, (), "stage 256: advance_when.needle: needs a task of kind needle; add one to cpt.validation"),
        (
            {"needle": 0.9},
            ("a", "b"),
            "stage 256: advance_when.needle: the stage has several needle tasks; set needle_task to one of a, b",
        ),
        (
            {"needle": 0.9, "needle_task": "c"},
            ("a",),
            "stage 256: advance_when.needle_task: c is not a needle task of the stage; set needle_task to one of a",
        ),
        ({"needle": 95}, ("a",), r"two.yaml:\d+: stages.0.advance_when.needle: must be between 0 and 1, got 95"),
        ({"needle_task": "a"}, ("a",), "advance_when.needle: missing; add the minimum score of needle_task"),
        ({"max_increase": 0.1}, (), "advance_when.set: missing; add it, because max_increase is given"),
        ({}, (), "advance_when: has no condition; add set and max_increase, or needle"),
        (
            {"set": "general", "needle": 2, "needle_task": "a"},
            (),
            r"two.yaml: 2 problems:\n.*max_increase: missing.*\n.*needle: must be between",
        ),
    ],
)
def test_mistakes_in_the_conditions_are_named(
    write_stages: Callable[..., Path],
    launcher: FakeLauncher,
    tmp_path: Path,
    rule: dict[str, Any],
    names: tuple[str, ...],
    message: str,
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(write_stages(with_needles(tmp_path, rule, *names)))
    assert not launcher.commands


def test_missing_results_of_a_launch_are_reported(
    write_stages: Callable[..., Path], launcher: FakeLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages_module, "run_launcher", lambda _: 0)
    with pytest.raises(CheckpointError, match="the last step of stage 256 is missing"):
        run(write_stages())


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"nam": "x"}, {}, "nam: unknown key; did you mean 'name'"),
        ({}, {"name": "256"}, "stage '256': duplicate name"),
        ({"name": "a/b"}, {}, "the name is part of a folder name"),
        ({}, {"set": {"cpt.init_from": "random"}}, "sets cpt.init_from, but it starts from the previous stage"),
        ({}, ADVANCE, "advance_when in the last stage"),
        ({"advance_when": {"set": "general"}}, {}, "max_increase: missing"),
        ({"advance_when": {"set": "geneal", "max_increase": 0}}, {}, "geneal is not a validation set of stage 256"),
        ({}, {"set": {"cpt.seq_lenth": 1}}, "cpt.seq_lenth: unknown key"),
        ({}, {"config": "nowhere.yaml"}, "nowhere.yaml: no such configuration file"),
        (
            {"set": {"cpt.export": {"to": "exported"}}},
            {"set": {"cpt.export": {"to": "./exported"}}},
            "stages 256 and 512: both export to ./exported; give each its own cpt.export.to",
        ),
        ({}, {"set": {"cpt.export": {"to": str(REPOSITORY)}}}, "cpt.export.to: .* is not an export of this run"),
        ({}, {"set": {"cpt.seq_length": 1024}}, "packed with sequence length 512, but cpt.seq_length is 1024"),
    ],
)
def test_mistakes_are_named_before_anything_starts(
    write_stages: Callable[..., Path],
    launcher: FakeLauncher,
    first: dict[str, Any],
    second: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(write_stages(first, second))
    assert not launcher.commands


def test_losses_that_cannot_be_compared_are_refused(write_stages: Callable[..., Path], launcher: FakeLauncher) -> None:
    path = write_stages()
    content = yaml.safe_load(path.read_text("utf-8"))
    middle = {**content["stages"][1], "name": "middle", **ADVANCE}
    middle["set"] = {**middle["set"], "cpt.document_attention": "within"}
    content["stages"].insert(1, middle)
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(ConfigError, match="stage middle: advance_when compares validation set general with stage 256"):
        run(path)


def test_an_unknown_stage_on_the_command_line_is_named(
    write_stages: Callable[..., Path], launcher: FakeLauncher
) -> None:
    with pytest.raises(ConfigError, match="--advance 128: .* has no such stage; its stages are 256, 512"):
        run(write_stages(), advance="128")


def test_a_dry_run_starts_nothing(
    write_stages: Callable[..., Path], launcher: FakeLauncher, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_stages(write_stages(), [], StageOptions(output_dir="elsewhere"), dry_run=True) == 0
    printed = capsys.readouterr().out
    assert "--- stage 256\nrun      elsewhere/two_256" in printed and "2 rows × 512 tokens" not in printed
    assert not launcher.commands
