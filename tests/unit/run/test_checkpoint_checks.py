"""Settings of keep_best and export that cannot work are reported before the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ascend_cpt.config.loader import load_config
from ascend_cpt.errors import ConfigError
from ascend_cpt.run.checks.checkpoints import find_checkpoint_problems, note_keep_best
from ascend_cpt.run.resolved_run import ResolvedRun
from ascend_cpt.run.summary import describe

SETS = {"general": {"path": "x"}, "domain": {"path": "y"}}


def load(tmp_path: Path, overrides: dict[str, Any]) -> Any:
    path = tmp_path / "run.yaml"
    path.write_text("cpt: {seq_length: 8, global_batch_size: 8}\n", encoding="utf-8")
    return load_config(path, {"cpt.validation": {"sets": SETS}, **overrides})


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"cpt.checkpoint.keep_best": {"set": "domain", "n": 2}},
        {
            "cpt.checkpoint.keep_best": {"task": "exam"},
            "cpt.validation.tasks": {"exam": {"kind": "multiple_choice", "path": "x"}},
        },
        {"cpt.export": {"to": "exported"}},
        {"cpt.export": {"to": "exported", "checkpoint": "best"}, "cpt.checkpoint.keep_best": {"set": "domain"}},
    ],
)
def test_valid_settings(tmp_path: Path, overrides: dict[str, Any]) -> None:
    assert find_checkpoint_problems(load(tmp_path, overrides)) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"cpt.checkpoint.keep_best": {"set": "domian"}},
            "keep_best.set: 'domian' is not in cpt.validation.sets; did you mean 'domain'?",
        ),
        (
            {"cpt.checkpoint.keep_best": {"set": "xyz"}},
            "keep_best.set: 'xyz' is not in cpt.validation.sets; choose from general, domain",
        ),
        (
            {"cpt.checkpoint.keep_best": {"task": "arc"}},
            "keep_best.task: 'arc' is not in cpt.validation.tasks; cpt.validation.tasks is empty, add it there",
        ),
        ({"cpt.checkpoint.keep_best": {"n": 2}}, "set either set (a validation set) or task"),
        ({"cpt.checkpoint.keep_best": {"set": "domain", "task": "arc"}}, "set either set (a validation set) or task"),
        ({"cpt.export": {"to": "e", "when": "always"}}, "export.when: 'always' is unknown; only end is possible"),
        ({"cpt.export": {"to": "e", "checkpoint": "first"}}, "'first' is unknown; choose last or best"),
        ({"cpt.export": {"to": "e", "checkpoint": "best"}}, "best needs cpt.checkpoint.keep_best"),
        (
            {"cpt.export": {"to": "e"}, "cpt.storage.shared": False},
            "then python tools/convert_weights.py to-hf GATHERED e",
        ),
    ],
)
def test_invalid_settings(tmp_path: Path, overrides: dict[str, Any], message: str) -> None:
    (problem,) = find_checkpoint_problems(load(tmp_path, overrides))
    assert message in problem and ": cpt." in problem


def test_all_problems_are_listed(tmp_path: Path) -> None:
    overrides = {
        "cpt.checkpoint.keep_best": {"set": "x"},
        "cpt.export": {"to": "e", "when": "x", "checkpoint": "x"},
        "cpt.storage.shared": False,
    }
    assert len(find_checkpoint_problems(load(tmp_path, overrides))) == 4


def test_n_is_at_least_1(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cpt.checkpoint.keep_best.n: must be at least 1, got 0"):
        load(tmp_path, {"cpt.checkpoint.keep_best": {"set": "domain", "n": 0}})


@pytest.mark.parametrize(
    ("saves", "validates", "warned"),
    [("10 steps", "5 steps", ""), ("10 steps", "15 steps", ""), ("7 steps", "100 steps", "cpt.checkpoint.every is 7"),
     ("10 steps", None, "cpt.validation.every is not set"), (None, "10 steps", "cpt.checkpoint.every is not set")],
)  # fmt: skip
def test_intervals_that_never_meet(tmp_path: Path, saves: str | None, validates: str | None, warned: str) -> None:
    keep = {"every": saves, "keep_best": {"set": "domain"}}
    config = load(tmp_path, {"cpt.checkpoint": keep, "cpt.validation.every": validates, "cpt.validation.sets": SETS})
    budget: Any = SimpleNamespace(tokens_per_step=64, total_steps=100)
    notes = note_keep_best(config, budget)
    assert (warned in notes[0] and notes[0].startswith("warning: ")) if warned else notes == ()


def test_disk_line_has_best_checkpoints_and_export(resolve_run: Callable[..., ResolvedRun]) -> None:
    def find_line(**changes: Any) -> str:
        run = resolve_run(**changes)
        return next(line for line in describe(run).splitlines() if line.startswith("disk"))

    checkpoint = {"every": "10 steps", "keep_last": 2}
    assert "at most 3 on disk at once" in find_line(checkpoint=checkpoint)
    line = find_line(checkpoint=checkpoint, export={"to": "exported"})
    assert line.startswith(find_line(checkpoint=checkpoint).rsplit(": ", 1)[0]) and "with an export of" in line
