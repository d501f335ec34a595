"""The results of a sweep: `sweep.json`, which makes it resumable, and its table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ascend_cpt.checkpoint.fingerprint import describe_differences
from ascend_cpt.config.task_schema import TaskConfig
from ascend_cpt.errors import CheckpointError, ConfigError
from ascend_cpt.files import write_text
from ascend_cpt.monitor.record import Judged, to_values
from ascend_cpt.run.evaluation.needles import open_haystacks
from ascend_cpt.run.evaluation.plan import EvaluationSettings, open_sets
from ascend_cpt.run.merging.command_line import Order
from ascend_cpt.strict_json import JsonError, build, read_json_object

RESULTS_NAME, TABLE_NAME, PICTURE_NAME = "sweep.json", "sweep.md", "sweep.png"
_GENERAL = "general"


@dataclass(frozen=True, kw_only=True)
class Measure:
    """The loss of a validation set or the score of a task."""

    name: str
    metric: str
    value: float
    higher_is_better: bool

    @property
    def label(self) -> str:
        return f"{self.name} {self.metric}"

    @property
    def is_task(self) -> bool:
        return self.metric != "loss"


@dataclass(frozen=True, kw_only=True)
class Point:
    """The evaluation of the merge at one value of the variable."""

    value: float
    records: tuple[dict[str, Any], ...]
    """As `tools/evaluate.py --json` writes them."""

    @property
    def measures(self) -> tuple[Measure, ...]:
        return tuple(map(_measure, self.records))

    def gain(self, reference: Point, names: Iterable[str]) -> float:
        """Return the mean improvement over `reference`: of the losses if `names` has any, else of the scores."""
        pairs = [
            (mine, other)
            for mine, other in zip(self.measures, reference.measures, strict=True)
            if mine.name in set(names)
        ]
        pairs = [pair for pair in pairs if not pair[0].is_task] or pairs
        gains = [
            mine.value - other.value if mine.higher_is_better else other.value - mine.value for mine, other in pairs
        ]
        return sum(gains) / len(gains)


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """The content of `sweep.json`."""

    variable: str
    merge: dict[str, Any]
    evaluation: dict[str, Any]
    points: tuple[Point, ...] = ()


class SweepResults:
    """The points in a folder's `sweep.json`, which is rewritten after each one.

    Args:
        folder: The folder.
        order: The sweep. Points of another merge or evaluation are not continued.
        settings: What is evaluated.

    Raises:
        CheckpointError: `sweep.json` is damaged.
        ConfigError: `sweep.json` is from another merge or another evaluation.
    """

    def __init__(self, folder: Path, order: Order, settings: EvaluationSettings) -> None:
        assert order.sweep is not None
        self._path, self._values = folder / RESULTS_NAME, order.sweep.values
        current = _Stored(
            variable=order.sweep.variable, merge=_describe_merge(order), evaluation=_describe_evaluation(settings)
        )
        self._stored = self._read(current) if self._path.is_file() else current

    @property
    def variable(self) -> str:
        return self._stored.variable

    @property
    def points(self) -> list[Point]:
        """All points, in ascending order of the variable, also those of an earlier start."""
        return sorted(self._stored.points, key=lambda point: point.value)

    def list_pending(self) -> list[float]:
        """Return the values that have no point."""
        found = {point.value for point in self._stored.points}
        return [value for value in self._values if value not in found]

    def add(self, value: float, records: Sequence[Judged]) -> None:
        """Store a point."""
        point = Point(value=value, records=tuple(to_values(record) for record in records))
        self._stored = _Stored(**{**vars(self._stored), "points": (*self._stored.points, point)})
        write_text(self._path, json.dumps(asdict(self._stored), indent=1) + "\n")

    def _read(self, current: _Stored) -> _Stored:
        try:
            stored = build(_Stored, read_json_object(self._path))
        except (OSError, JsonError) as error:
            raise CheckpointError(
                f"{self._path}: cannot be read: {error}; remove it to start the sweep again"
            ) from error
        differences = describe_differences(
            {key: value for key, value in vars(stored).items() if key != "points"},
            {key: value for key, value in vars(current).items() if key != "points"},
        )
        if differences:
            raise ConfigError(
                f"{self._path}: from another sweep ({'; '.join(differences[:3])}); give another TARGET, or remove it "
                "to start again"
            )
        return stored


def choose_general(settings: EvaluationSettings, given: Sequence[str]) -> tuple[str, ...]:
    """Return the sets and tasks that measure forgetting.

    Args:
        settings: What is evaluated.
        given: Names on the command line. Without them, those with an alarm for forgetting, or else the one named
            `general`.

    Raises:
        ConfigError: a name is not that of a set or a task.
    """
    names = (*settings.sets, *settings.tasks)
    if unknown := [name for name in given if name not in names]:
        raise ConfigError(f"--general {unknown[0]}: not among the evaluated sets and tasks: {', '.join(names)}")
    if given:
        return tuple(given)
    guarded = [name for name, entry in settings.sets.items() if entry.max_increase is not None]
    guarded += [name for name, task in settings.tasks.items() if task.max_drop is not None]
    return tuple(guarded) or tuple(name for name in names if name == _GENERAL)


def make_table(variable: str, points: Sequence[Point]) -> str:
    """Return a Markdown table of the measures, with their differences from the first point."""
    header = [variable, *(measure.label for measure in points[0].measures)]
    rows = [
        [
            f"{point.value:g}",
            *(
                f"{mine.value:.4f}" + (f" ({mine.value - first.value:+.4f})" if point is not points[0] else "")
                for mine, first in zip(point.measures, points[0].measures, strict=True)
            ),
        ]
        for point in points
    ]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, ["---"] * len(header), *rows))


def _measure(record: Mapping[str, Any]) -> Measure:
    # NaN and infinity are stored as text.
    if "loss" in record:
        return Measure(name=record["name"], metric="loss", value=float(record["loss"]), higher_is_better=False)
    return Measure(
        name=record["name"],
        metric=record["metric"],
        value=float(record["score"]),
        higher_is_better=record["higher_is_better"],
    )


def _describe_merge(order: Order) -> dict[str, Any]:
    recipe = order.recipe
    return {
        "method": recipe.method,
        "weights": [str(weight) for weight in recipe.weights],
        "t": None if recipe.t is None else str(recipe.t),
        "normalize": recipe.normalize,
        "like": str(order.like),
        "out_dtype": order.options.dtype,
        "models": [{"name": f"{n} {path}", "files": _list_files(path)} for n, path in enumerate(recipe.inputs)],
    }


def _describe_evaluation(settings: EvaluationSettings) -> dict[str, Any]:
    """Return the settings with what identifies the data: digests of datasets, sizes and times of task files."""
    datasets = {**open_sets(settings), **open_haystacks(settings.tasks)}
    record = {
        **asdict(settings),
        "digests": {name: manifest.digest for name, manifest in datasets.items()},
        "task_files": {name: _list_task_files(task) for name, task in settings.tasks.items() if name not in datasets},
    }
    return dict(json.loads(json.dumps(record, default=str)))


def _list_task_files(task: TaskConfig) -> dict[str, list[int]]:
    return {
        name: entry
        for path in (task.path, task.few_shot_path)
        if path
        for name, entry in _list_files(Path(path)).items()
    }


def _list_files(path: Path) -> dict[str, list[int]]:
    """Return name → size and time of modification (ns) of a file, or of the files in a folder."""
    files = sorted(entry for entry in path.iterdir() if entry.is_file()) if path.is_dir() else [path]
    stats: Mapping[str, Any] = {file.name: file.stat() for file in files if file.exists()}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
