"""The export at the end of a run: checks before training, and each state in which the export can be."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from ascend_cpt.checkpoint.best import mark_best
from ascend_cpt.checkpoint.state import RunState, write_state
from ascend_cpt.errors import CheckpointError, ConfigError, ExportError
from ascend_cpt.model.sizes import read_config
from ascend_cpt.run.export import at_end
from ascend_cpt.run.export.at_end import export_at_end, is_export_missing
from ascend_cpt.run.export.target import ExportRecord, check_target, choose_like, read_record, write_record
from ascend_cpt.run.resolved_run import ResolvedRun
from ascend_cpt.weights.convert import Options, convert_to_mindformers
from ascend_cpt.weights.hf_folder import HfFolder

REFERENCE = Path(__file__).resolve().parents[2] / "reference/qwen3"
MakeRun = Callable[..., ResolvedRun]


@pytest.fixture
def make_run(resolve_run: Callable[..., ResolvedRun], tmp_path: Path) -> MakeRun:
    """Return a function that makes a run with `cpt.export` to tmp_path/exported; arguments are its other keys."""

    def make(**export: str) -> ResolvedRun:
        best = {"every": "10 steps", "keep_best": {"set": "held"}} if export.get("checkpoint") == "best" else {}
        validation = {"every": "10 steps", "sets": {"held": {"path": "x"}}}
        settings = {"to": str(tmp_path / "exported"), **export}
        run = resolve_run(export=settings, checkpoint=best, validation=validation, num_rows={"web": 10_000})
        return dataclasses.replace(run, run_dir=tmp_path / "run")

    return make


@pytest.fixture
def complete_run(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> MakeRun:
    """Return a function like `make_run` whose run has complete checkpoints at steps 500 and 1000, the last."""
    # No machine has this much memory: the comparison of logits needs MindSpore.
    monkeypatch.setattr(at_end, "LOGITS_BYTES_PER_PARAMETER", 10**12)

    def complete(**export: str) -> ResolvedRun:
        run = make_run(**export)
        for step in (500, 1000):
            folder = run.checkpoint_root / f"iteration_{step:08d}"
            convert_to_mindformers(HfFolder(REFERENCE), folder, Options())
            (folder / "config.json").unlink()
            state = RunState(step=step, total_steps=1000, tokens=1, position=1, fingerprint=run.fingerprint())
            write_state(folder, state)
        sections = {"model": {"model_config": read_config(REFERENCE)}}
        (run.run_dir / "resolved.yaml").write_text(yaml.safe_dump(sections), encoding="utf-8")
        return run

    return complete


def export(run: ResolvedRun) -> str:
    lines: list[str] = []
    export_at_end(run, lines.append)
    return "\n".join(lines)


def test_export_is_made_once_and_again_when_it_is_missing(complete_run: MakeRun, tmp_path: Path) -> None:
    run, target = complete_run(), tmp_path / "exported"
    target.mkdir()  # an empty folder is accepted
    assert is_export_missing(run)
    shown = export(run)
    assert f"export   {target}: " in shown and "logits are not compared: this needs about" in shown
    assert f"verified against {run.checkpoint_root}/iteration_00001000, without logits" in shown
    assert {path.name for path in target.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    assert read_record(run.run_dir) == ExportRecord(to=str(target), step=1000, verified=True)
    assert "convert_weights.py to-hf" in (run.run_dir / "logs/export.log").read_text(encoding="utf-8")
    check_target(run)  # its own export is no problem for the next start
    (target / "README.md").write_text("edited", encoding="utf-8")
    assert "already exported and verified" in export(run) and not is_export_missing(run)
    assert (target / "README.md").read_text(encoding="utf-8") == "edited"
    shutil.rmtree(target)
    assert is_export_missing(run) and "verified against" in export(run)


def test_an_interrupted_verification_is_repeated_without_the_export(complete_run: MakeRun, tmp_path: Path) -> None:
    run = complete_run()
    export(run)
    record = ExportRecord(to=str(tmp_path / "exported"), step=1000, verified=False)
    write_record(run.run_dir, record)
    before = (tmp_path / "exported/model.safetensors").stat().st_mtime_ns
    shown = export(run)
    assert "verified against" in shown and "tensors" not in shown
    assert (tmp_path / "exported/model.safetensors").stat().st_mtime_ns == before
    # A folder that is not equal to the checkpoint is an error with the command that compares them.
    write_record(run.run_dir, record)
    weights = tmp_path / "exported/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\1\2\3\4")
    with pytest.raises(ExportError, match="it differs from the checkpoint.*to repeat it: python .* verify .*--against"):
        export(run)
    assert is_export_missing(run)


def test_the_export_of_an_earlier_step_is_kept_under_another_name(complete_run: MakeRun, tmp_path: Path) -> None:
    run = complete_run()
    export(run)
    write_record(run.run_dir, ExportRecord(to=str(tmp_path / "exported"), step=500, verified=True))
    (tmp_path / "exported/README.md").write_text("edited", encoding="utf-8")
    (tmp_path / "exported.step_500").mkdir()
    assert f"the earlier export of step 500 was moved to {tmp_path}/exported.step_500_1" in export(run)
    assert (tmp_path / "exported.step_500_1/README.md").read_text(encoding="utf-8") == "edited"
    assert "after step 1000 of 1000" in (tmp_path / "exported/README.md").read_text(encoding="utf-8")


def test_best_checkpoint_and_failures(complete_run: MakeRun, tmp_path: Path) -> None:
    run = complete_run(checkpoint="best")
    with pytest.raises(ExportError, match="the run is complete, but its export to .* failed: .*no best checkpoint"):
        export(run)
    mark_best(run.checkpoint_root, run.checkpoint_root / "iteration_00000500")
    export(run)
    record = read_record(run.run_dir)
    assert record is not None and record.step == 500
    shutil.rmtree(tmp_path / "exported")
    (tmp_path / "exported").write_text("a file", encoding="utf-8")
    with pytest.raises(
        ExportError, match=r"exported: already exists.*log: .*export.log\); to repeat it: python"
    ) as raised:
        export(run)
    assert "&& python tools/convert_weights.py verify" in str(raised.value) and raised.value.exit_code == 1
    assert "\n" not in str(raised.value)


def test_problems_before_training(make_run: MakeRun, tmp_path: Path) -> None:
    run, target = make_run(), tmp_path / "exported"
    check_target(run)
    target.mkdir()
    check_target(run)
    (target / "README.md").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config.yaml:\d+: cpt.export.to: .*exported already exists and is not an"):
        check_target(run)
    shutil.rmtree(target)
    with pytest.raises(ConfigError, match="contains the run folder"):
        check_target(make_run(to=str(tmp_path)))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file cannot be written; choose another folder"):
        check_target(make_run(to=str(tmp_path / "file/x/exported")))
    with pytest.raises(ConfigError, match="2 problems:\n.*contains the run folder.*\n.*nowhere: has neither tokenizer"):
        check_target(make_run(to=str(tmp_path), like=str(tmp_path / "nowhere")))
    with pytest.raises(ConfigError, match="cpt.export.like: .*describes another model"):
        check_target(make_run(like=str(REFERENCE)))


def test_tokenizer_comes_from_the_initial_weights(
    make_run: MakeRun, resolve_run: Callable[..., ResolvedRun], tmp_path: Path
) -> None:
    assert choose_like(make_run()) is None
    assert choose_like(make_run(like="x")) == Path("x")
    run = resolve_run(export={"to": "x"}, init_from=str(tmp_path / "base"))
    assert choose_like(run) is None
    shutil.copytree(REFERENCE, tmp_path / "base")
    assert choose_like(run) is None, "another model"
    config = {key: run.model[key] for key in run.model if key not in ("rope_scaling",)} | {"model_type": "qwen3"}
    (tmp_path / "base/config.json").write_text(json.dumps(config), encoding="utf-8")
    assert choose_like(run) == tmp_path / "base"


def test_a_damaged_record_is_named(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    run.run_dir.mkdir()
    (run.run_dir / "export.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="export.json: cannot be read"):
        read_record(run.run_dir)
