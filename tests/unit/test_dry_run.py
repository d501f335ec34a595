"""`run_cpt.py --dry-run` without the datasets: every shipped configuration can be looked at on a laptop."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command_line import TrainCommand, train_command  # noqa: F401

REPO_ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(
    str(path.relative_to(REPO_ROOT))
    for path in (REPO_ROOT / "configs").glob("*/*.yaml")
    if path.parent.name not in ("base", "stages", "tuning")
)
NVIDIA = "configs/recipes/nvidia_300b_two_phases.yaml"
WIKITEXT = "configs/recipes/mindformers_llama2_7b_wikitext.yaml"


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run in a folder without data."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_shipped_configuration_without_its_data(train_command: TrainCommand, config: str) -> None:  # noqa: F811
    code, out, err = train_command.dry_run(config)
    assert code == 0, err
    for word in ("layout ", "batch ", "budget ", "phase ", "source ", "disk ", "start "):
        assert f"\n{word}" in out
    assert " not found; " in out


def test_phases_and_epochs_of_assumed_sizes(train_command: TrainCommand, tmp_path: Path) -> None:  # noqa: F811
    code, out, err = train_command.dry_run(NVIDIA, "--assume", "web=200B,qa=2.8B", draws=True)
    assert code == 0, err
    assert "layout   128 devices = data 64 × tensor 2" in out
    assert "phase    qa: from step 45224 (213B) to 63578, 86.6B tokens, rate 9e-06 at its start" in out
    assert "source   web: 141B tokens = 0.71 epochs" in out and "source   qa: 8.66B tokens = 3.09 epochs" in out
    assert "source   code: 60B tokens, its size is unknown" in out
    assert "cpt.sources.qa: /data/packed/qa_text_document not found; 2.8B tokens are assumed" in out
    assert "note     warning: these weights were not found" in out
    assert (tmp_path / "output/nvidia_300b_two_phases/plan.png").read_bytes().startswith(b"\x89PNG")


def test_max_epochs_applies_to_assumed_sizes(train_command: TrainCommand) -> None:  # noqa: F811
    code, _, err = train_command.dry_run(NVIDIA, "--assume", "qa=1B")
    assert code == 2
    assert "cpt.sources.qa: the run needs 8.66B tokens of this source (8.66 epochs of 1B), but max_epochs is 4" in err


def test_a_budget_in_epochs_needs_a_size(train_command: TrainCommand) -> None:  # noqa: F811
    code, out, err = train_command.dry_run(WIKITEXT)
    assert code == 0, err
    assert "the length of the run depends on its size, and 1B tokens are assumed" in out
    code, out, err = train_command.dry_run(WIKITEXT, "--assume", "wikitext2=2.66M")
    assert code == 0, err
    assert "budget   20 steps" in out and "source   wikitext2: 5.24M tokens = 1.97 epochs of 649 rows" in out


@pytest.mark.parametrize(
    ("assumed", "message"),
    [
        ("wab=1B", "--assume wab: no such source; did you mean 'web'?"),
        ("web", "--assume web: expected NAME=TOKENS, got 'web'; for example --assume web=200B,qa=2.8B"),
        ("web=lots", "--assume web=lots: expected a number such as 1.6M or 300B, got 'lots'"),
        ("web=0", "--assume web=0: web: must be above 0"),
        ("web=10", "--assume web=10: less than a row of 4096 tokens"),
    ],
)
def test_wrong_sizes(train_command: TrainCommand, assumed: str, message: str) -> None:  # noqa: F811
    code, _, err = train_command.dry_run(NVIDIA, "--assume", assumed)
    assert code == 2 and message in err, err


def test_training_does_not_assume(train_command: TrainCommand) -> None:  # noqa: F811
    config = str(REPO_ROOT / NVIDIA)
    code, _, err = train_command.run("--config", config, "--assume", "web=1B")
    assert code == 2 and err.startswith("error: --assume: needs --dry-run")
    code, _, err = train_command.run("--config", config, "--dry-run", "--world-size", "0")
    assert code == 2 and "--world-size 0: needs --dry-run and must be at least 1" in err


def test_a_damaged_dataset_is_not_taken_as_missing(train_command: TrainCommand, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "web_text_document.mindrecord0").write_bytes(b"x")
    prefix = tmp_path / "web_text_document"
    code, _, err = train_command.dry_run(NVIDIA, "--set", f"cpt.sources.web.path={prefix}")
    assert code == 2 and f"{prefix}: no packed dataset here" in err
