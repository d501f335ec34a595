"""A tuning session: turns, dropped overlays, crashes and hangs, continuing, the combination, and the written winner."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from ascend_cpt.config.loader import load_config
from ascend_cpt.errors import ConfigError
from ascend_cpt.run.launch.reason import find_reason
from ascend_cpt.tune.compare import Comparison, compare, render_table
from ascend_cpt.tune.overlays import combine, load_overlays
from ascend_cpt.tune.session import Outcome, Session, TuneError, open_session
from ascend_cpt.tune.trial import TrialResult, TrialSettings
from ascend_cpt.tune.write_winner import write_winner
from tests.unit.tune import job

CONFIG = "cpt: {seq_length: 8, global_batch_size: 2, train_tokens: 100K, init_from: random}"
JOB = f"{sys.executable} -I -S {job.__file__} {{}}"


@pytest.fixture
def overlays(tmp_path: Path) -> dict[str, Path]:
    """Return the files of overlays by name, as `job.py` understands them."""
    actions: dict[str, Any] = {
        "fast": {"seed": job.FASTER},
        "also_fast": {"optimizer": {"weight_decay": 0.2}},
        "slow": {"seed": job.SLOWER},
        "raises": {"seed": job.RAISES},
        "hangs": {"seed": job.HANGS},
        "killed": {"seed": job.KILLED},
        "empty": {"seed": job.EMPTY},
        "unknown": {"optimiser": {"weight_decay": 0.2}},
    }
    (tmp_path / "overlays").mkdir()
    (tmp_path / "run.yaml").write_text(CONFIG)
    files = {}
    for name, changes in actions.items():
        files[name] = tmp_path / "overlays" / f"{name}.yaml"
        files[name].write_text(yaml.safe_dump(changes))
    return files


@contextmanager
def open_test_session(
    tmp_path: Path, paths: list[Path], *, folder: str = "work", retry: bool = False, **changes: Any
) -> Iterator[Session]:
    def make_settings(base: Path) -> TrialSettings:
        values: dict[str, Any] = {"num_steps": 6, "num_warmup_steps": 2, "workers": 2, "timeout_s": 20, "launch": JOB}
        return TrialSettings(base=base, **{**values, **changes})

    overrides = {"cpt.train_tokens": "400K", "output_dir": str(tmp_path / "output")}
    with open_session(
        tmp_path / "run.yaml",
        overrides,
        tmp_path / folder,
        load_overlays(paths),
        settings=make_settings,
        num_rounds=2,
        report=lambda line: None,
        retry_failed=retry,
    ) as session:
        yield session


def tune(tmp_path: Path, paths: list[Path], **changes: Any) -> Outcome:
    with open_test_session(tmp_path, paths, **changes) as session:
        return session.run()


def read_started(tmp_path: Path) -> list[str]:
    return (tmp_path / "work" / "started").read_text().split()


def test_rounds_take_turns_and_the_combination_wins(tmp_path: Path, overlays: dict[str, Path]) -> None:
    outcome = tune(tmp_path, [overlays["fast"], overlays["slow"], overlays["also_fast"]])
    started = read_started(tmp_path)
    assert started[:4] == ["base_1", "fast_1", "slow_1", "also_fast_1"]
    assert sorted(started[4:8]) == ["also_fast_2", "base_2", "fast_2", "slow_2"] and started[4] != "base_2"
    assert sorted(started[8:]) == ["base_3", "base_4", "combined_3", "combined_4"]
    gains = {one.name: one.gain for one in outcome.comparisons}
    expected = {"base": 0.0, "fast": 0.25, "slow": -0.5, "also_fast": 0.1 / 0.07 - 1, "combined": 1.0}
    assert gains == pytest.approx(expected)
    assert outcome.winner is not None and outcome.winner[0].overlays == ("also_fast", "fast")
    table = render_table(outcome.comparisons).splitlines()
    assert table[1].split()[:2] == ["combined", "20K"] and "+100.0%" in table[1] and "1.0 GB" in table[1]
    assert "10.0%" in table[1]  # 20 000 tokens/s × 10^4 / (2 × 10^9)


def test_failing_overlays_are_dropped_with_the_reason(tmp_path: Path, overlays: dict[str, Path]) -> None:
    names = ["raises", "hangs", "killed", "empty", "unknown", "fast"]
    outcome = tune(tmp_path, [overlays[name] for name in names], timeout_s=2)
    reasons = {name: outcome.dropped[name] for name in names[:-1]}
    assert reasons["raises"] == "RuntimeError: out of memory"
    assert reasons["hangs"] == "not finished after 2 s (--timeout)"
    assert reasons["killed"] == "exit code -9: no output"
    assert "recorded 1 of 6 steps" in reasons["empty"]
    assert "optimiser: unknown key; did you mean 'optimizer'?" in reasons["unknown"]
    assert outcome.winner is not None and outcome.winner[0].name == "fast"
    assert "combined_3" not in read_started(tmp_path), "a single winner is not run again"


def test_an_interrupted_session_continues(tmp_path: Path, overlays: dict[str, Path]) -> None:
    paths = [overlays["fast"], overlays["raises"]]
    first = tune(tmp_path, paths)
    results = tmp_path / "work" / "results"
    (results / "fast_2.json").unlink()  # the interrupted trial
    (results / "base_1.json").write_text('{"name": "ba')  # damaged
    (tmp_path / "work" / "started").unlink()
    again = tune(tmp_path, paths)
    assert sorted(read_started(tmp_path)) == ["base_1", "fast_2"]
    assert again.dropped == first.dropped
    assert [one.gain for one in again.comparisons] == pytest.approx([one.gain for one in first.comparisons])
    overlays["raises"].write_text("seed: 0\n")
    with pytest.raises(ConfigError, match="has trials of another configuration, other overlays"):
        tune(tmp_path, paths)
    with pytest.raises(ConfigError, match="other numbers of steps"):
        tune(tmp_path, [overlays["fast"], overlays["raises"]], num_steps=7)


def test_failed_trials_are_repeated_on_request(tmp_path: Path, overlays: dict[str, Path]) -> None:
    paths = [overlays["killed"], overlays["fast"]]
    tune(tmp_path, paths)
    failed = tmp_path / "work" / "results" / "killed_1.json"
    first_ns = failed.stat().st_mtime_ns
    tune(tmp_path, paths)
    assert failed.stat().st_mtime_ns == first_ns
    tune(tmp_path, paths, retry=True)
    assert failed.stat().st_mtime_ns > first_ns and read_started(tmp_path).count("fast_1") == 1


def test_a_configuration_that_fails_is_an_error(tmp_path: Path, overlays: dict[str, Path]) -> None:
    with pytest.raises(TuneError, match="without an overlay fails: exit code 1"):
        tune(tmp_path, [overlays["fast"]], launch="false {}")


@pytest.mark.parametrize(
    ("folder", "launch", "message"),
    [
        ("output/work", "x {}", "is in the output folder"),
        ("work", "x", "must stand for the training command"),
        ("work", "x '{}", "check its quotes"),
    ],
)
def test_wrong_arguments(tmp_path: Path, overlays: dict[str, Path], folder: str, launch: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tune(tmp_path, [overlays["fast"]], folder=folder, launch=launch)
    assert not (tmp_path / "output").exists()


def test_a_folder_has_one_session(tmp_path: Path, overlays: dict[str, Path]) -> None:
    with (
        open_test_session(tmp_path, [overlays["fast"]]),
        pytest.raises(ConfigError, match="another session is using it"),
    ):
        tune(tmp_path, [overlays["fast"]])


def test_the_winner_is_a_configuration(tmp_path: Path, overlays: dict[str, Path]) -> None:
    winner = combine(load_overlays([overlays["fast"], overlays["also_fast"]]))
    path = tmp_path / "new" / "tuned.yaml"
    measured = Comparison(name="combined", results=(), gain=0.2, noise=0.01)
    write_winner(path, tmp_path / "run.yaml", {"cpt.train_tokens": "400K"}, (winner, measured), "Not of an NPU.")
    config = load_config(path)
    assert config.mindformers["seed"] == job.FASTER and config.mindformers["optimizer"]["weight_decay"] == 0.2
    assert config.cpt.train_tokens == 400_000 and config.cpt.init_from == "random"
    assert path.read_text().splitlines()[2] == "# Not of an NPU."


def test_drift_and_noise() -> None:
    """All trials of round 2 are half as fast: gains are those within the rounds."""

    def make(name: str, number: int, speed: float) -> TrialResult:
        return TrialResult(name=name, round=number, tokens_per_s=(speed,))

    speeds = {("base", 1): 100.0, ("base", 2): 50.0, ("a", 1): 110.0, ("a", 2): 54.0, ("b", 1): 130.0, ("b", 2): 48.0}
    results = {key: make(*key, speed) for key, speed in speeds.items()}
    steady, noisy = compare("a", results, (1, 2)), compare("b", results, (1, 2))
    assert steady is not None and steady.gain == pytest.approx(0.09) and steady.is_faster
    assert noisy is not None and noisy.gain == pytest.approx(0.13) and not noisy.is_faster
    assert compare("c", results, (1, 2)) is None


@pytest.mark.parametrize(
    ("console", "reason"),
    [
        ("error: 2 problems:\n  a.yaml:1: x: unknown\nerror: b", "error: 2 problems: a.yaml:1: x: unknown"),
        ("step 1\nTypeError: bad\nValueError: worse", "TypeError: bad"),
        (
            "RuntimeError: \n-----\n- Kernel select failed:\n-----\nUnsupported op [Swiglu] on CPU\n\n-----\n- Stack:",
            "RuntimeError: Kernel select failed: Unsupported op [Swiglu] on CPU",
        ),
        ("step 1\nworker 3 was killed by SIGKILL; its log: x", "worker 3 was killed by SIGKILL; its log: x"),
        ("one\ntwo\n", "exit code 7: two"),
    ],
)  # fmt: skip
def test_reason(console: str, reason: str) -> None:
    assert find_reason(console, 7) == reason
