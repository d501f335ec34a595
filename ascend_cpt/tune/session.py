"""Runs the trials of a tuning session. Results are on disk, so a session can be interrupted and continued."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ascend_cpt.config.loader import load_config
from ascend_cpt.errors import EXIT_FAILURE, ConfigError, CptError
from ascend_cpt.files import write_text
from ascend_cpt.locks import take_lock
from ascend_cpt.monitor.sinks import format_duration
from ascend_cpt.run.planning.changes import nest
from ascend_cpt.tune.compare import Comparison, compare
from ascend_cpt.tune.overlays import BASE, Candidate, combine
from ascend_cpt.tune.trial import TrialResult, TrialSettings, make_command, run_trial, write_config

PLAN_NAME, BASE_NAME, LOCK_NAME = "session.json", "base.yaml", ".lock"
BASE_CANDIDATE = Candidate(name=BASE, overlays=(), changes={})


class TuneError(CptError):
    """The base does not run, so there is nothing to compare with."""

    exit_code = EXIT_FAILURE


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A session's comparisons, the reasons why overlays were dropped, and the fastest candidate (None: the base)."""

    comparisons: tuple[Comparison, ...]
    dropped: dict[str, str]
    winner: tuple[Candidate, Comparison] | None
    device: str


class Session:
    """The trials of a configuration and its overlays in one folder.

    Args:
        folder: Folder for results, trial folders and logs. Trials write nowhere else.
        settings: Settings shared by all trials.
        overlays: The overlays, each of which is one candidate.
        num_rounds: Number of times each candidate runs.
        report: Takes progress lines.
    """

    def __init__(
        self,
        folder: Path,
        settings: TrialSettings,
        overlays: Sequence[Candidate],
        *,
        num_rounds: int,
        report: Callable[[str], None],
    ) -> None:
        self._folder, self._settings, self._overlays = folder, settings, list(overlays)
        self._num_rounds, self._report = num_rounds, report
        self._results: dict[tuple[str, int], TrialResult] = {}
        self._durations_s: list[float] = []

    def run(self) -> Outcome:
        """Run all trials that have no result yet, and compare.

        Raises:
            TuneError: the base fails in the first round.
            KeyboardInterrupt: the running trial was stopped. Its result is missing, but all others are kept.
        """
        alive = list(self._overlays)
        dropped: dict[str, str] = {}
        for number in range(1, self._num_rounds + 1):
            self._run_round(number, alive, dropped, first_place=(number - 1) * 2)
            alive = [one for one in alive if one.name not in dropped]
        rounds = range(1, self._num_rounds + 1)
        comparisons = [found for one in alive if (found := compare(one.name, self._results, rounds))]
        base = compare(BASE, self._results, rounds)
        assert base is not None  # the first round has one
        by_name = {one.name: one for one in alive}
        faster = sorted((one for one in comparisons if one.is_faster), key=lambda one: -one.gain)
        winner = (by_name[faster[0].name], faster[0]) if faster else None
        if len(faster) > 1:
            combined = combine([by_name[one.name] for one in faster])
            found = self._measure_combined(combined, dropped)
            if found is not None:
                comparisons.append(found)
                assert winner is not None
                if found.is_faster and found.gain > winner[1].gain:
                    winner = (combined, found)
        return Outcome(comparisons=(base, *comparisons), dropped=dropped, winner=winner, device=base.results[0].device)

    def _measure_combined(self, combined: Candidate, dropped: dict[str, str]) -> Comparison | None:
        """Alternate the combination with the base, as many times as the overlays ran, and compare."""
        self._report(f"combining {', '.join(combined.overlays)}")
        rounds = range(self._num_rounds + 1, 2 * self._num_rounds + 1)
        for number in rounds:
            self._run_round(number, [combined], dropped, first_place=number)
            if combined.name in dropped:
                return None
        return compare(combined.name, self._results, rounds)

    def _run_round(
        self, number: int, candidates: Sequence[Candidate], dropped: dict[str, str], *, first_place: int
    ) -> None:
        """Run the base and all candidates once. Each round begins with a different one. Failing ones are dropped."""
        turn = [BASE_CANDIDATE, *candidates]
        shift = first_place % len(turn)
        # In the first round, the base goes first, because nothing can be compared if the base does not run.
        for index, candidate in enumerate([*turn[shift:], *turn[:shift]]):
            result = self._get_result(candidate, number, place=f"{index + 1}/{len(turn)}")
            self._results[candidate.name, number] = result
            if not result.error:
                continue
            if candidate.name != BASE:
                dropped[candidate.name] = result.error
            elif (BASE, 1) not in self._results or self._results[BASE, 1].error:
                folder = self._trial_folder(BASE, number)
                raise TuneError(f"the configuration without an overlay fails: {result.error}; see {folder}")

    def _get_result(self, candidate: Candidate, number: int, *, place: str) -> TrialResult:
        path = self._folder / "results" / f"{candidate.name}_{number}.json"
        recorded = TrialResult.load(path)
        # A base that failed is measured again, because the others need it.
        if recorded is not None and not (recorded.error and candidate.name == BASE):
            return recorded
        folder = self._trial_folder(candidate.name, number)
        result = self._find_problem(candidate, number, folder) or run_trial(candidate, number, folder, self._settings)
        path.parent.mkdir(parents=True, exist_ok=True)
        result.save(path)
        self._durations_s.append(result.seconds)
        outcome = f"dropped: {result.error}" if result.error else f"{result.median:,.0f} tokens/s"
        self._report(f"round {number}, {place} {candidate.name}: {outcome} ({result.seconds:.0f} s){self._estimate()}")
        return result

    def _find_problem(self, candidate: Candidate, number: int, folder: Path) -> TrialResult | None:
        """Return a failure if the configuration has unknown keys or wrong types. This requires no launch."""
        folder.mkdir(parents=True, exist_ok=True)
        try:
            load_config(write_config(candidate, folder, self._settings.base))
        except ConfigError as error:
            if candidate.name == BASE:
                raise
            return TrialResult(name=candidate.name, round=number, error=f"error: {' '.join(str(error).split())}")
        return None

    def _estimate(self) -> str:
        """Return the time left for the overlays' rounds. How many will be combined is not known yet."""
        failed = {name for (name, _), result in self._results.items() if result.error and name != BASE}
        expected = (1 + len(self._overlays) - len(failed)) * self._num_rounds
        left = expected - sum(not result.error for result in self._results.values()) - 1
        if left <= 0:
            return ""
        return f"; about {format_duration(left * sum(self._durations_s) / len(self._durations_s))} left"

    def _trial_folder(self, name: str, number: int) -> Path:
        return self._folder / "trials" / f"{name}_{number}"


@contextmanager
def open_session(
    config: Path,
    overrides: dict[str, Any],
    folder: Path,
    overlays: Sequence[Candidate],
    *,
    settings: Callable[[Path], TrialSettings],
    num_rounds: int,
    report: Callable[[str], None],
    retry_failed: bool = False,
) -> Iterator[Session]:
    """Yield the session of a folder, and hold the folder's lock.

    Args:
        config: The user's configuration.
        overrides: Dotted key → value from the command line.
        folder: The session's folder, which is created if it is missing.
        overlays: The overlays, each of which is one candidate.
        settings: Returns the settings of all trials, given the base configuration in the folder.
        num_rounds: Rounds of the session.
        report: Takes progress lines.
        retry_failed: Forget the results of failed trials.

    Raises:
        ConfigError: the configuration is invalid, or the folder is in use, belongs to another session, or is in the
            configuration's output folder.
    """
    loaded = load_config(config, overrides)
    output = Path(loaded.mindformers.get("output_dir") or "output").absolute()
    if folder.absolute().is_relative_to(output):
        raise ConfigError(f"--folder {folder}: is in the output folder of {config}; choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ConfigError(f"--folder {folder}: cannot be written ({error.strerror}); choose another folder") from None
    try:
        if not take_lock(descriptor, folder / LOCK_NAME, risk="do not start a second session in this folder"):
            raise ConfigError(f"--folder {folder}: another session is using it; wait for it, or choose another folder")
        trial_settings = settings((folder / BASE_NAME).absolute())
        make_command(Path(), Path(), trial_settings)  # checks --launch
        _check_plan(folder, loaded.tree.data, trial_settings, overlays, num_rounds)
        write_text(folder / BASE_NAME, yaml.safe_dump(make_base(config, overrides), sort_keys=False))
        for path in (folder / "results").glob("*.json") if retry_failed else ():
            result = TrialResult.load(path)
            if result is None or result.error:
                path.unlink()
        yield Session(folder.absolute(), trial_settings, overlays, num_rounds=num_rounds, report=report)
    finally:
        os.close(descriptor)


def make_base(config: Path, overrides: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration that has `config` as its base, with the overrides in nested form."""
    return {"base_config": str(config.absolute()), **nest(overrides)}


def _check_plan(
    folder: Path, data: dict[str, Any], settings: TrialSettings, overlays: Sequence[Candidate], num_rounds: int
) -> None:
    """Record what the session measures. Refuse a folder with another session's trials."""
    values = {
        "configuration": data,
        "overlays": {one.name: one.changes for one in overlays},
        "workers": settings.workers,
        "launch": settings.launch,
        "steps": [settings.num_steps, settings.num_warmup_steps, num_rounds],
    }
    digest = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
    path = folder / PLAN_NAME
    try:
        recorded = json.loads(path.read_text(encoding="utf-8")).get("digest")
    except (OSError, ValueError, AttributeError):
        recorded = None
    if recorded not in (None, digest) and any((folder / "results").glob("*.json")):
        raise ConfigError(
            f"--folder {folder}: has trials of another configuration, other overlays or other numbers of steps, rounds "
            "or workers; choose another folder, or remove this one"
        )
    write_text(path, json.dumps({"digest": digest, "started": time.time(), **values}, indent=1, default=str) + "\n")
