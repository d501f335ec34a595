"""What a run starts from: exact resume, extension, or weights; errors and warnings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ascend_cpt.checkpoint.state import RunState, read_state, write_state
from ascend_cpt.errors import CheckpointError, ConfigError
from ascend_cpt.model.sizes import read_config, select_model_fields
from ascend_cpt.run.resolved_run import ResolvedRun
from ascend_cpt.run.starting_point import Start, choose_start

ResolveRun = Callable[..., ResolvedRun]
STEP_TOKENS = 8 * 256
WSD = {"kind": "wsd", "peak_lr": 1e-3, "decay_tokens": 100 * STEP_TOKENS}
GENERAL = {"name": "general", "tokens": 600 * STEP_TOKENS, "blend": {"web": 0.7, "code": 0.3}}
QA = {"name": "qa", "blend": {"web": 0.6, "qa": 0.4}}


def save(run: ResolvedRun, run_dir: Path, step: int) -> ResolvedRun:
    """Write the state of a checkpoint of `run` at `step`; return the run in that folder."""
    run = dataclasses.replace(run, run_dir=run_dir)
    folder = run.checkpoint_root / f"iteration_{step:08d}"
    folder.mkdir(parents=True)
    state = RunState(
        step=step,
        total_steps=run.budget.total_steps,
        tokens=step * STEP_TOKENS,
        position=step * 8,
        fingerprint=run.fingerprint(),
    )
    write_state(folder, state)
    return run


def extend(resolve_run: ResolveRun, tmp_path: Path, step: int, before: dict[str, Any], after: dict[str, Any]) -> Start:
    saved = save(resolve_run(**before), tmp_path / "run", step)
    longer = dataclasses.replace(resolve_run(**after), run_dir=saved.run_dir)
    with pytest.raises(CheckpointError, match="or give --extend to make the run longer"):
        choose_start(longer, None)
    return choose_start(longer, None, extend=True)


def test_same_run_resumes(resolve_run: ResolveRun, tmp_path: Path) -> None:
    run = save(resolve_run(phases=[GENERAL, QA]), tmp_path / "run", 700)
    assert choose_start(run, None).step == 700


def test_a_run_with_other_stages_resumes(resolve_run: ResolveRun, tmp_path: Path) -> None:
    """The fingerprint has no layers of stages; those of earlier versions do not count."""
    run = save(resolve_run(phases=[GENERAL, QA]), tmp_path / "run", 700)
    folder = run.checkpoint_root / "iteration_00000700"
    state = read_state(folder)
    saved = {**state.fingerprint, "model": {**state.fingerprint["model"], "offset": [1, -1]}}
    write_state(folder, dataclasses.replace(state, fingerprint=saved))
    assert choose_start(run, None).step == 700
    run.config.mindformers["model"]["model_config"]["offset"] = [0]
    assert "offset" not in run.fingerprint()["model"] and choose_start(run, None).step == 700


def test_an_incomplete_checkpoint_is_skipped_unless_the_user_gave_it(resolve_run: ResolveRun, tmp_path: Path) -> None:
    run = save(resolve_run(phases=[GENERAL, QA]), tmp_path / "run", 700)
    unfinished = run.checkpoint_root / "iteration_00000800"
    unfinished.mkdir()
    reason = f"{unfinished}: has no cpt_state.json, so the save did not finish"
    chosen = choose_start(run, None)
    assert (chosen.step, chosen.warnings) == (700, (reason,))
    with pytest.raises(CheckpointError) as caught:
        choose_start(run, str(unfinished))
    assert str(caught.value) == f"{reason}; choose another step"


def test_changed_blend_weights_are_named(resolve_run: ResolveRun, tmp_path: Path) -> None:
    saved = save(resolve_run(phases=[GENERAL, QA]), tmp_path / "run", 700)
    other = resolve_run(phases=[GENERAL, {**QA, "blend": {"web": 0.5, "qa": 0.5}}])
    with pytest.raises(CheckpointError, match=r"phases: .*'3/5'.* → .*'1/2'") as caught:
        choose_start(dataclasses.replace(other, run_dir=saved.run_dir), None)
    assert "--extend" not in str(caught.value)


def test_more_tokens_on_a_stable_rate(resolve_run: ResolveRun, tmp_path: Path) -> None:
    one = {"schedule": WSD, "num_rows": {"web": 10_000}}
    start = extend(resolve_run, tmp_path, 850, one, {**one, "train_tokens": 2000 * STEP_TOKENS})
    assert start.step == 850
    assert start.notes[0] == "extended at step 850: 1000 → 2000 steps (2.05M → 4.1M tokens)"
    assert start.notes[1:] == ("learning rate: 0.001 at step 849, 0.001 at step 850, final 0",)


def test_a_new_phase_with_a_new_source(resolve_run: ResolveRun, tmp_path: Path) -> None:
    before = {"schedule": WSD, "phases": [GENERAL], "train_tokens": None, "num_rows": {"web": 10_000, "code": 4_000}}
    start = extend(resolve_run, tmp_path, 600, before, {"schedule": WSD, "phases": [GENERAL, QA]})
    assert start.notes[0].startswith("extended at step 600: 600 → 1000 steps")
    assert any("jump" in note for note in start.notes), "the learning rate had already decayed"


def test_extending_a_cosine_gives_a_warning(resolve_run: ResolveRun, tmp_path: Path) -> None:
    one = {"schedule": {"peak_lr": 1e-3, "final_lr": 1e-5}, "num_rows": {"web": 10_000}}
    notes = extend(resolve_run, tmp_path, 1000, one, {**one, "train_tokens": 2000 * STEP_TOKENS}).notes
    assert notes[1] == "learning rate: 1e-05 at step 999, 0.000505 at step 1000, final 1e-05"
    assert "learning rate jumps by a factor of 50.5" in notes[2]


@pytest.mark.parametrize(
    ("after", "message"),
    [
        ({"phases": [GENERAL, QA], "global_batch_size": 16}, r"restore the other settings .*global_batch_size: 8 → 16"),
        (
            {"phases": [{**GENERAL, "blend": {"web": 1, "code": 1}}, QA]},
            r"0 to 600: code 3/10 \+ web 7/10 → 0 to 600: code 1/2",
        ),
        ({"phases": [{**GENERAL, "tokens": 500 * STEP_TOKENS}, QA]}, "→ 0 to 500: .*, 500 to 600: qa 2/5"),
        (
            {"phases": [GENERAL, QA], "num_rows": {"web": 9_999, "code": 4_000, "qa": 500}},
            "source web is not",
        ),
    ],
)
def test_extension_must_keep_trained_rows(
    resolve_run: ResolveRun, tmp_path: Path, after: dict[str, Any], message: str
) -> None:
    before = {"phases": [GENERAL], "train_tokens": None, "num_rows": {"web": 10_000, "code": 4_000}}
    common = {"schedule": {"peak_lr": 1e-3}}
    saved = save(resolve_run(**common, **before), tmp_path / "run", 600)
    with pytest.raises(CheckpointError, match=message):
        choose_start(dataclasses.replace(resolve_run(**common, **after), run_dir=saved.run_dir), None, extend=True)


def test_an_extension_must_extend_something(resolve_run: ResolveRun, tmp_path: Path) -> None:
    one = {"schedule": WSD, "num_rows": {"web": 10_000}}
    saved = save(resolve_run(**one), tmp_path / "run", 850)
    shorter = dataclasses.replace(resolve_run(**one, train_tokens=900 * STEP_TOKENS), run_dir=saved.run_dir)
    with pytest.raises(CheckpointError, match="it has 900 steps and had 1000"):
        choose_start(shorter, None, extend=True)
    with pytest.raises(CheckpointError, match="no checkpoint to extend"):
        choose_start(dataclasses.replace(saved, run_dir=tmp_path / "other"), None, extend=True)


def test_rewarming_on_the_same_data_is_warned_about(resolve_run: ResolveRun, tmp_path: Path) -> None:
    one = {"schedule": {"peak_lr": 1e-3, "final_lr": 1e-4}, "num_rows": {"web": 10_000}}
    saved = save(resolve_run(**one), tmp_path / "run", 1000)
    again = dataclasses.replace(resolve_run(**one, init_from=str(saved.run_dir)), run_dir=tmp_path / "again")
    (note,) = choose_start(again, None).notes
    assert "already trained on web with a final learning rate of 0.0001; the rate of this run rises to 0.001" in note
    constant = {"schedule": {"kind": "constant", "peak_lr": 1e-4}, "num_rows": {"web": 10_000}}
    calm = dataclasses.replace(resolve_run(**constant, init_from=str(saved.run_dir)), run_dir=tmp_path / "calm")
    assert choose_start(calm, None).notes == ()
    other = resolve_run(schedule=one["schedule"], num_rows={"web": 9_000}, init_from=str(saved.run_dir))
    assert choose_start(dataclasses.replace(other, run_dir=tmp_path / "other"), None).notes == ()


def test_initial_weights_are_required(resolve_run: ResolveRun, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no initial weights"):
        choose_start(dataclasses.replace(resolve_run(init_from=None), run_dir=tmp_path / "run"), None)


def set_model(run: ResolvedRun, run_dir: Path, **fields: Any) -> ResolvedRun:
    """Return the run in another folder with other model fields."""
    model = {"model_config": {**run.model, **fields}}
    config = dataclasses.replace(run.config, mindformers={**run.config.mindformers, "model": model})
    return dataclasses.replace(run, run_dir=run_dir, config=config)


def test_yarn_may_be_added_to_hugging_face_weights(resolve_run: ResolveRun, tmp_path: Path) -> None:
    folder = Path(__file__).resolve().parents[2] / "reference" / "qwen3"
    config = read_config(folder)
    run = set_model(resolve_run(init_from=str(folder)), tmp_path / "run", **select_model_fields(config))
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    assert choose_start(run, None).notes == ()
    start = choose_start(set_model(run, tmp_path / "run", rope_scaling=yarn), None)
    assert start.init_from == folder
    assert start.notes == ("rotary embeddings differ from those that the weights were trained with: YaRN is added",)
    for changes in ({"rope_theta": 5e5}, {"rope_theta": 5e5, "rope_scaling": yarn}):
        with pytest.raises(CheckpointError, match="a different model: rope is "):
            choose_start(set_model(run, tmp_path / "run", **changes), None)


def test_rope_may_change_in_a_new_run_but_not_on_resume(resolve_run: ResolveRun, tmp_path: Path) -> None:
    saved = save(resolve_run(), tmp_path / "run", 700)
    run = resolve_run(init_from=str(saved.run_dir))
    note = choose_start(set_model(run, tmp_path / "next", rope_theta=4e4), None).notes[0]
    assert note.endswith("differ from those that the weights were trained with: rope_theta: 10000.0 → 40000.0")
    assert not any("rotary" in line for line in choose_start(set_model(run, tmp_path / "next"), None).notes)
    with pytest.raises(CheckpointError, match=r"model.rope_theta: 10000.0 → 40000.0"):
        choose_start(set_model(run, saved.run_dir, rope_theta=4e4), None)
    with pytest.raises(CheckpointError, match="its model sizes differ from model.model_config"):
        choose_start(set_model(run, tmp_path / "next", hidden_size=64), None)
