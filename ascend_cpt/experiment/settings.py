"""The file that describes an experiment. Each field is documented by the string below it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ascend_cpt.config.loader import convert_value, raise_problems
from ascend_cpt.config.schema import Positive, Tokens
from ascend_cpt.config.yaml_file import load_yaml_tree
from ascend_cpt.errors import ConfigError

MEASURES = ("change", "peak", "early", "final")
PICTURES = ("frontier", "bars", "curves")
OWN_KEYS = ("seed", "output_dir", "cpt.run_name", "cpt.init_from")
"""Configuration keys that the runner sets."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """A kind of run."""

    config: str
    """Configuration of `run_cpt.py`, relative to the repository."""
    set: dict[str, Any] = field(default_factory=dict)
    """Overrides of configuration keys (dotted key → value), as with --set."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One of the compared continuations."""

    name: str
    """Name in the table."""
    config: str | None = None
    """Configuration; default: that of `continuation`."""
    set: dict[str, Any] = field(default_factory=dict)
    """Overrides in addition to those of `continuation`."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A number computed from a validation set's losses in a run; a column of the table."""

    name: str
    """Heading of the column."""
    set: str
    """Name of the validation set."""
    value: str = "change"
    """`change`: last minus first loss; `peak`: highest minus first; `early`: at `at` minus first; `final`: last."""
    at: float = 0.25
    """For `early`: share of the run; the first validation at or after it is used."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """How the results are plotted."""

    kind: str
    """`frontier`: one measure against another; `bars`: measures side by side; `curves`: a set's losses over tokens."""
    measures: tuple[str, ...] = ()
    """Names of the measures: x and y of a frontier, or the groups of bars."""
    set: str | None = None
    """Validation set of `curves`."""


@dataclass(frozen=True, kw_only=True)
class Quick:
    """Budgets for `--quick`, which uses only the first seed."""

    base_tokens: Tokens
    """Tokens of the base."""
    tokens: Tokens
    """Tokens of each continuation."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Continuations of one base that differ in one setting, each repeated with several seeds."""

    title: str
    """Heading in docs/experiments.md."""
    claim: str
    """What the literature says, in one sentence."""
    source: str
    """Where it says so."""
    prepare: tuple[str, ...] = ()
    """Shell commands that make the datasets; they run in the repository before the first run."""
    seeds: tuple[Positive, ...] = (1, 2, 3)
    """Seeds of weights and row order. Base and continuation of a seed have the same one."""
    base: Training
    """The run that all continuations of a seed start from."""
    continuation: Training
    """Settings shared by the continuations."""
    variants: tuple[Variant, ...]
    """The continuations to compare."""
    measures: tuple[Measure, ...]
    """Columns of the table."""
    picture: Picture
    """The picture."""
    quick: Quick
    """Smaller budgets."""


def load_experiment(path: Path) -> Experiment:
    """Return the experiment in a file.

    Raises:
        ConfigError: lists every problem with its file and line.
    """
    tree = load_yaml_tree(path)
    problems: list[str] = []
    experiment: Experiment = convert_value(Experiment, tree.data, (), tree, problems)
    raise_problems(path, problems)
    names = [variant.name for variant in experiment.variants]
    measures = {measure.name for measure in experiment.measures}
    for kind, items in (("variants", experiment.variants), ("measures", experiment.measures)):
        if not items:
            problems.append(f"{path}: {kind}: is empty; add at least one")
    for index, variant in enumerate(experiment.variants):
        where = tree.locate(("variants", str(index), "name"))
        if names.index(variant.name) != index:
            problems.append(f"{where}: variants.{index}.name: {variant.name!r} is used twice; rename one")
        if not to_slug(variant.name):
            problems.append(f"{where}: variants.{index}.name: {variant.name!r} has no letter or digit; rename it")
        problems += _find_own_keys(variant.set, f"{where}: variants.{index}.set")
    for name, training in (("base", experiment.base), ("continuation", experiment.continuation)):
        problems += _find_own_keys(training.set, f"{tree.locate((name, 'set'))}: {name}.set")
    for index, measure in enumerate(experiment.measures):
        if measure.value not in MEASURES:
            where = tree.locate(("measures", str(index), "value"))
            problems.append(f"{where}: measures.{index}.value: {measure.value!r} is not one of {', '.join(MEASURES)}")
    if len(set(experiment.seeds)) != len(experiment.seeds) or not experiment.seeds:
        problems.append(f"{tree.locate(('seeds',))}: seeds: give at least one seed, and none twice")
    problems += _find_picture_problems(experiment.picture, measures, tree.locate(("picture",)))
    raise_problems(path, problems)
    return experiment


def to_slug(name: str) -> str:
    """Return a name as part of a folder name: lower case, other characters than letters and digits as `_`."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _find_own_keys(overrides: dict[str, Any], where: str) -> list[str]:
    return [f"{where}: {key} is set by the runner; remove it" for key in OWN_KEYS if key in overrides]


def _find_picture_problems(picture: Picture, measures: set[str], where: str) -> list[str]:
    problems = [
        f"{where}: picture.measures: there is no measure {name!r}; use {', '.join(sorted(measures))}"
        for name in picture.measures
        if name not in measures
    ]
    if picture.kind not in PICTURES:
        problems.append(f"{where}: picture.kind: {picture.kind!r} is not one of {', '.join(PICTURES)}")
    elif picture.kind == "frontier" and len(picture.measures) != 2:
        problems.append(f"{where}: picture.measures: a frontier needs two measures, x and y")
    elif picture.kind == "bars" and not picture.measures:
        problems.append(f"{where}: picture.measures: bars need at least one measure")
    elif picture.kind == "curves" and picture.set is None:
        problems.append(f"{where}: picture.set: missing; name the validation set")
    return problems


def find_experiment(name: str, folder: Path) -> Path:
    """Return the file of an experiment, given as a path or as the name of a file in `folder`.

    Raises:
        ConfigError: there is none.
    """
    for path in (Path(name), folder / f"{name}.yaml"):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
    raise ConfigError(f"{name}: no such experiment; give a YAML file, or one of {known}")
