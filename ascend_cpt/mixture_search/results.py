"""The measured proxies of a search in `search.json`, which makes it resumable."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ascend_cpt.checkpoint.fingerprint import describe_differences
from ascend_cpt.errors import CheckpointError, ConfigError
from ascend_cpt.files import write_text
from ascend_cpt.mixture_search.proxies import Proxy
from ascend_cpt.strict_json import JsonError, build, read_json_object

RESULTS_NAME = "search.json"


@dataclass(frozen=True, kw_only=True)
class Result:
    """A proxy with its values after training, or the reason why it failed."""

    kind: str
    shares: tuple[float, ...]
    seed: int
    values: dict[str, float] = field(default_factory=dict)
    """Loss of each validation set and score of each task."""
    error: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """The content of `search.json`."""

    settings: dict[str, Any]
    sources: tuple[str, ...]
    results: tuple[Result, ...] = ()
    base: dict[str, float] = field(default_factory=dict)
    higher_is_better: tuple[str, ...] = ()
    scores: tuple[str, ...] = ()


class Results:
    """The results in a folder. The file is rewritten after each proxy.

    Args:
        folder: The folder.
        settings: Results of other settings are not continued.
        sources: Names of the sources, in the order of the shares.

    Raises:
        CheckpointError: `search.json` is damaged.
        ConfigError: `search.json` is from another search.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], sources: Sequence[str]) -> None:
        self._path = folder / RESULTS_NAME
        plain = json.loads(json.dumps(settings, default=str))
        current = _Stored(settings=plain, sources=tuple(sources))
        self._stored = self._read(current) if self._path.is_file() else current

    @property
    def base(self) -> dict[str, float]:
        """Values before training."""
        return self._stored.base

    @property
    def scores(self) -> frozenset[str]:
        """Names of the measures that are scores of tasks."""
        return frozenset(self._stored.scores)

    @property
    def higher_is_better(self) -> frozenset[str]:
        return frozenset(self._stored.higher_is_better)

    def find(self, proxy: Proxy) -> Result | None:
        """Return the result of a proxy with these shares and this seed, of any kind."""
        for result in self._stored.results:
            if (result.shares, result.seed) == (proxy.shares, proxy.seed):
                return result
        return None

    def list_results(self, kinds: Sequence[str]) -> list[Result]:
        """Return the results of these kinds, in the order in which they were measured."""
        return [result for result in self._stored.results if result.kind in kinds]

    def add(self, result: Result) -> None:
        """Store a result."""
        self._write(results=(*self._stored.results, result))

    def set_base(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Store the values before training, from the records of a run at step 0."""
        tasks = [record for record in records if record["kind"] == "task"]
        self._write(
            base={record["name"]: read_value(record) for record in records},
            scores=tuple(record["name"] for record in tasks),
            higher_is_better=tuple(record["name"] for record in tasks if record["higher_is_better"]),
        )

    def forget_failed(self) -> None:
        """Remove the results of failed proxies, so that these are trained again."""
        self._write(results=tuple(result for result in self._stored.results if not result.error))

    def _write(self, **changes: Any) -> None:
        self._stored = _Stored(**{**vars(self._stored), **changes})
        write_text(self._path, json.dumps(asdict(self._stored), indent=1) + "\n")

    def _read(self, current: _Stored) -> _Stored:
        try:
            stored = build(_Stored, read_json_object(self._path))
        except (OSError, JsonError) as error:
            raise CheckpointError(
                f"{self._path}: cannot be read: {error}; remove it to start the search again"
            ) from None
        differences = describe_differences(
            {"settings": stored.settings, "sources": list(stored.sources)},
            {"settings": current.settings, "sources": list(current.sources)},
        )
        if differences:
            raise ConfigError(
                f"{self._path}: from another search ({'; '.join(differences[:3])}); give another FOLDER, or remove it "
                "to start again"
            )
        return stored


def read_value(record: Mapping[str, Any]) -> float:
    """Return the loss or the score of a record; NaN and infinity are stored as text."""
    return float(record["loss"] if record["kind"] == "validation" else record["score"])


def is_usable(values: Mapping[str, float]) -> bool:
    """Return whether all values are finite."""
    return all(math.isfinite(value) for value in values.values())
