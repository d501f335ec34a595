"""The program behind tools/search_mixture.py."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ascend_cpt.errors import EXIT_FAILURE, EXIT_OK, CheckpointError, ConfigError
from ascend_cpt.files import write_text
from ascend_cpt.locks import take_lock
from ascend_cpt.mixture_search.command_line import Order
from ascend_cpt.mixture_search.proxies import Proxy, Setup, describe_settings, prepare
from ascend_cpt.mixture_search.report import (
    OUTCOME_NAME,
    PICTURE_NAME,
    TABLE_NAME,
    describe_annealing,
    describe_fits,
    describe_frontier,
    draw,
    is_inside,
    make_table,
    measure_sides,
    to_values,
    write_blend,
    write_range,
)
from ascend_cpt.mixture_search.results import Result, Results
from ascend_cpt.mixture_search.session import Session
from ascend_cpt.recipe.mixture.design import round_shares, sample_blends, upweight_source
from ascend_cpt.recipe.mixture.frontier import (
    Goals,
    Predicted,
    find_frontier,
    list_candidates,
    predict_blends,
    recommend,
)
from ascend_cpt.recipe.mixture.surface import Measurements, Surface, list_outside

_GENERAL = "general"
_LOCK_NAME = ".lock"
_FITTED_KINDS = ("design", "given")


def main(order: Order) -> int:
    """Run the search and return the exit code: 1 if the fit has failed."""
    with _hold_folder(order.folder):
        setup = prepare(order, order.folder)
        general = choose_general(setup, order.general)
        results = Results(order.folder, describe_settings(setup, order), setup.names)
        if order.retry_failed:
            results.forget_failed()
        session = Session(
            order.folder,
            setup,
            results,
            launch=order.launch,
            timeout_s=order.timeout_s,
            linear=order.microanneal,
            report=_print,
        )
        if order.microanneal:
            return _anneal(order, setup, session)
        return _Search(order, setup, results, session, general).run()


def choose_general(setup: Setup, given: Sequence[str]) -> tuple[str, ...]:
    """Return the sets and tasks that measure forgetting, as in a sweep of merges.

    Raises:
        ConfigError: a name is not that of a set or a task.
    """
    if unknown := [name for name in given if name not in setup.measures]:
        raise ConfigError(f"--general {unknown[0]}: not among the sets and tasks: {', '.join(setup.measures)}")
    if given:
        return tuple(dict.fromkeys(given))
    validation = setup.config.cpt.validation
    assert validation is not None
    guarded = [name for name, entry in validation.sets.items() if entry.max_increase is not None]
    guarded += [name for name, task in validation.tasks.items() if task.max_drop is not None]
    return tuple(guarded) or tuple(name for name in setup.measures if name == _GENERAL)


class _Search:
    """The steps of a search."""

    def __init__(
        self, order: Order, setup: Setup, results: Results, session: Session, general: tuple[str, ...]
    ) -> None:
        self._order, self._setup, self._results, self._session = order, setup, results, session
        self._general = general
        self._outcome: dict[str, Any] = {}
        self._text: list[str] = []

    def run(self) -> int:
        """Train the proxies, fit, and report."""
        self._session.train([*self._list_design(), *self._list_given()])
        usable = [one for one in self._results.list_results(_FITTED_KINDS) if not one.error]
        for one in self._results.list_results(_FITTED_KINDS):
            if one.error:
                self._say(f"failed proxy: {write_blend(self._setup.names, one.shares)} seed {one.seed}: {one.error}")
        surface = self._fit(usable)
        code = EXIT_FAILURE if surface is None else self._choose(surface, usable)
        write_text(self._order.folder / TABLE_NAME, "\n".join(self._text) + "\n")
        write_text(self._order.folder / OUTCOME_NAME, json.dumps(self._outcome, indent=1) + "\n")
        return code

    def _list_design(self) -> list[Proxy]:
        order = self._order
        try:
            blends = sample_blends(
                list(self._setup.tokens.values()),
                order.num_proxies,
                temperature=order.temperature,
                seed=order.design_seed,
            )
        except ValueError as error:
            raise ConfigError(f"--proxies {order.num_proxies}: {error}") from None
        return [Proxy(kind="design", shares=tuple(blend.tolist()), seed=s) for s in order.seeds for blend in blends]

    def _list_given(self) -> list[Proxy]:
        proxies = []
        for blend in self._order.blends:
            if unknown := [name for name in blend if name not in self._setup.names]:
                raise ConfigError(f"--blend: {unknown[0]} is not a source; choose from {', '.join(self._setup.names)}")
            shares = round_shares([blend.get(name, 0.0) for name in self._setup.names], min_share=0.0)
            proxies += [Proxy(kind="given", shares=tuple(shares.tolist()), seed=seed) for seed in self._order.seeds]
        return proxies

    def _fit(self, usable: Sequence[Result]) -> Surface | None:
        if not usable:
            self._say("failed fit: no proxy has results")
            return None
        measurements = Measurements(
            shares=np.array([one.shares for one in usable]),
            values={name: np.array([one.values[name] for one in usable]) for name in self._setup.measures},
            scores=self._results.scores,
        )
        try:
            surface = Surface(measurements)
        except ValueError as error:
            self._say(f"failed fit: {error}; raise --proxies")
            return None
        self._say(describe_fits(surface.fitted))
        self._outcome["fits"] = {
            name: {
                "law": one.law.name if one.law else None,
                "error": one.error,
                "error_of_mean": one.mean_error,
                "errors": one.errors,
                "noise": one.noise,
                "failed": one.has_failed,
            }
            for name, one in surface.fitted.items()
        }
        for name, one in surface.fitted.items():
            if one.has_failed:
                self._say(
                    f"failed fit: {name}: the error on left-out blends is not below that of the mean, so it is not "
                    "used. Raise --proxies or the budget of a proxy"
                )
        return surface

    def _choose(self, surface: Surface, usable: Sequence[Result]) -> int:
        """Report the frontier and a blend. Return 1 if there is nothing to choose from."""
        setup, goals = self._setup, self._make_goals(surface)
        if not goals.general and not goals.others:
            return EXIT_FAILURE
        candidates = list_candidates(surface, list(setup.tokens.values()), setup.limits)
        if not len(candidates):
            self._say("no blend satisfies max_epochs of all sources within the measured range; lower cpt.train_tokens")
            return EXIT_FAILURE
        frontier: list[Predicted] = []
        if goals.general and goals.others:
            frontier = find_frontier(surface, goals, candidates)
            self._say("frontier, with 90 % bands for a new run:\n" + describe_frontier(setup.names, frontier))
        else:
            self._say(
                "no frontier: needs usable sets for both forgetting and gain; name those for forgetting with --general"
            )
        best = recommend(surface, goals, candidates, self._order.max_forgetting)
        self._outcome |= {
            "general": list(goals.general),
            "frontier": [to_values(setup.names, one) for one in frontier],
            "recommended": None if best is None else to_values(setup.names, best),
        }
        confirmed = self._confirm(surface, goals, frontier, best)
        self._recommend(surface, best, goals)
        if frontier:
            draw(self._order.folder / PICTURE_NAME, goals, usable, frontier, best, confirmed)
            _print(f"{self._order.folder / PICTURE_NAME}: gain against forgetting")
        return EXIT_OK if best is not None else EXIT_FAILURE

    def _make_goals(self, surface: Surface) -> Goals:
        """Return the measures of both kinds whose fit is usable; of losses and scores, only losses if there are any."""
        kinds = []
        for is_general in (True, False):
            names = [
                name
                for name, one in surface.fitted.items()
                if (name in self._general) is is_general and not one.has_failed
            ]
            kinds.append(tuple([name for name in names if name not in self._results.scores] or names))
        return Goals(
            general=kinds[0],
            others=kinds[1],
            base=self._results.base,
            higher_is_better=self._results.higher_is_better,
        )

    def _confirm(
        self, surface: Surface, goals: Goals, frontier: Sequence[Predicted], best: Predicted | None
    ) -> list[Result]:
        """Train blends of the frontier, which the fit has not seen, and compare them with the bands."""
        if not self._order.num_confirmed:
            return []
        seed = self._order.seeds[0]
        points = {one.shares: one for one in [*([best] if best else []), *frontier]}
        fitted = {one.shares for one in self._results.list_results(_FITTED_KINDS)}
        new = [one for shares, one in points.items() if shares not in fitted][: self._order.num_confirmed]
        # The bands are for runs with the seeds of the proxies.
        proxies = [Proxy(kind="confirm", shares=one.shares, seed=seed) for one in new]
        results = self._session.train(proxies)
        rows = [["blend", "forgetting", "predicted", "gain", "predicted", "within"]]
        inside = []
        predictions = predict_blends(surface, goals, np.array([one.shares for one in new])) if new else []
        for one, result in zip(predictions, results, strict=True):
            if result.error:
                continue
            forgetting, gain = measure_sides(goals, result.values)
            marks = [is_inside(forgetting, one.forgetting_band), is_inside(gain, one.gain_band)]
            inside += [mark for mark, value in zip(marks, (forgetting, gain), strict=True) if value is not None]
            rows.append(
                [
                    write_blend(self._setup.names, one.shares).removeprefix("blend: "),
                    "-" if forgetting is None else f"{forgetting:+.4f}",
                    write_range(one.forgetting, one.forgetting_band),
                    "-" if gain is None else f"{gain:+.4f}",
                    write_range(one.gain, one.gain_band),
                    "yes" if all(marks) else "no",
                ]
            )
        self._say(f"new runs of {len(rows) - 1} blends of the frontier:\n{make_table(rows)}")
        self._say(f"within the bands: {sum(inside)} of {len(inside)} values")
        self._outcome["confirmed"] = {"values": len(inside), "within": sum(inside)}
        return results

    def _recommend(self, surface: Surface, best: Predicted | None, goals: Goals) -> None:
        if best is None:
            self._say(
                f"no blend: the predicted forgetting of every blend is above --max-forgetting "
                f"{self._order.max_forgetting:g}; raise it, or choose from the frontier"
            )
            return
        limit = self._order.max_forgetting
        rule = "the largest gain minus forgetting" if limit is None else f"the largest gain with forgetting ≤ {limit:g}"
        if not (goals.general and goals.others):
            rule = "the largest improvement"
        self._say(f"{rule}: forgetting {write_range(best.forgetting, best.forgetting_band)}, "
                  f"gain {write_range(best.gain, best.gain_band)}")  # fmt: skip
        outside = list_outside(np.array(best.shares), surface.measurements.shares, self._setup.names)
        assert not outside, "candidates are within the measured range"
        self._say(write_blend(self._setup.names, best.shares))
        at_edge = self._list_at_edge(surface, best)
        if at_edge:
            self._say(
                f"warning: at the edge of the measured shares: {', '.join(at_edge)}; a better blend may be outside"
            )

    def _list_at_edge(self, surface: Surface, best: Predicted) -> list[str]:
        """Return the sources with a share close to the largest measured one, below 1."""
        most = surface.measurements.shares.max(axis=0)
        return [
            name
            for name, share, limit in zip(self._setup.names, best.shares, most, strict=True)
            if share >= limit - 0.02 and 0 < limit < 0.98
        ]

    def _say(self, text: str) -> None:
        self._text.append(text)
        _print(text)


def _anneal(order: Order, setup: Setup, session: Session) -> int:
    """Train a reference and a run with each source upweighted, and print the changes."""
    sizes = np.array(list(setup.tokens.values()), dtype=np.float64)
    reference = round_shares(sizes)
    blends = {"": reference}
    for index, name in enumerate(setup.names):
        blends[name] = upweight_source(reference, index, order.upweight)
    found: dict[str, list[Result]] = {name: [] for name in blends}
    proxies = [
        Proxy(kind="anneal", shares=tuple(shares.tolist()), seed=seed)
        for seed in order.seeds
        for shares in blends.values()
    ]
    results = session.train(proxies)
    for index, result in enumerate(results):
        found[list(blends)[index % len(blends)]].append(result)
    table, values = describe_annealing(setup.names, found, setup.measures)
    heading = (
        f"change relative to {write_blend(setup.names, reference.tolist())} when {order.upweight:.0%} of the tokens "
        f"are replaced by one source (seeds: {len(order.seeds)}):"
    )
    _print(f"{heading}\n{table}")
    write_text(order.folder / TABLE_NAME, f"{heading}\n\n{table}")
    write_text(
        order.folder / OUTCOME_NAME, json.dumps({"upweight": order.upweight, "changes": values}, indent=1) + "\n"
    )
    return EXIT_OK


@contextlib.contextmanager
def _hold_folder(folder: Path) -> Iterator[None]:
    """Create the folder and hold its lock until the block or the process ends.

    Raises:
        CheckpointError: another process holds it, or it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / _LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be created: {error.strerror}; choose another folder") from error
    try:
        if not take_lock(descriptor, folder / _LOCK_NAME, risk="do not start a second search in this folder"):
            raise CheckpointError(f"{folder}: another search is running there; wait for it, or choose another folder")
        yield
    finally:
        os.close(descriptor)


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
