"""The runs of an experiment: their settings, folder names and commands, and the losses in complete runs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ascend_cpt.config.loader import load_config
from ascend_cpt.config.schema import CptConfig
from ascend_cpt.errors import ConfigError
from ascend_cpt.experiment.settings import Experiment, Training, to_slug
from ascend_cpt.monitor.history import METRICS_NAME, read_metrics

REPOSITORY = Path(__file__).resolve().parents[2]
BASE = "base"
HASH_CHARACTERS = 10

Curves = dict[str, list[tuple[int, float]]]
"""Validation set → (tokens, loss in nats) of each validation."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run."""

    name: str
    """Name of the run folder; ends with a hash of all settings, so that other settings are another run."""
    variant: str
    """Name of the variant; `base` for a base."""
    seed: int
    needs: str | None
    """Name of the job whose weights it starts from."""
    config: str
    overrides: Mapping[str, Any]
    tokens: int

    def make_command(self, folder: Path, num_threads: int) -> list[str]:
        """Return the command that trains this run in `folder`. If it was interrupted, the run is resumed."""
        settings = {
            **self.overrides,
            "seed": self.seed,
            "cpt.run_name": self.name,
            "cpt.init_from": "random" if self.needs is None else str(folder / self.needs),
            "context.runtime_num_threads": num_threads,
        }
        command = [sys.executable, str(REPOSITORY / "run_cpt.py"), "--config", self.config]
        command += ["--output_dir", str(folder)]
        for key, value in settings.items():
            command += ["--set", f"{key}={json.dumps(value)}"]
        return command


def list_jobs(experiment: Experiment, seeds: tuple[int, ...], *, quick: bool) -> list[Job]:
    """Return all runs; the base of a seed precedes its continuations.

    Raises:
        ConfigError: the configuration of a run is not valid.
    """
    jobs = []
    for seed in seeds:
        base = make_job(experiment.base, BASE, seed, None, experiment.quick.base_tokens if quick else None)
        jobs.append(base)
        for variant in experiment.variants:
            training = Training(
                config=variant.config or experiment.continuation.config,
                set={**experiment.continuation.set, **variant.set},
            )
            tokens = experiment.quick.tokens if quick else None
            jobs.append(make_job(training, variant.name, seed, base.name, tokens))
    return jobs


def make_job(training: Training, variant: str, seed: int, needs: str | None, tokens: int | None) -> Job:
    """Return the run of a variant and seed. `tokens` replaces its budget."""
    overrides = dict(training.set)
    if tokens is not None:
        overrides["cpt.train_tokens"] = tokens
    config = load_config(REPOSITORY / training.config, {**overrides, "seed": seed})
    if config.cpt.train_tokens is None:
        raise ConfigError(f"{training.config}: {variant}: has no cpt.train_tokens; set it in the experiment")
    if config.cpt.validation is None:
        raise ConfigError(f"{training.config}: {variant}: has no cpt.validation; the results are read from it")
    settings = {
        "cpt": _drop_defaults(dataclasses.replace(config.cpt, run_name=None, init_from=needs)),
        "mindformers": {key: value for key, value in config.mindformers.items() if key != "output_dir"},
        "data": _hash_datasets(config.cpt),
    }
    text = json.dumps(settings, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:HASH_CHARACTERS]
    return Job(
        name=f"{to_slug(variant)}_{seed}_{digest}",
        variant=variant,
        seed=seed,
        needs=needs,
        config=training.config,
        overrides=overrides,
        tokens=config.cpt.train_tokens,
    )


def _drop_defaults(value: Any) -> Any:
    """Return a configuration without the keys that have their defaults, so that a new key leaves the hash unchanged."""
    if isinstance(value, Mapping):
        return {key: _drop_defaults(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_drop_defaults(item) for item in value]
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    kept = {}
    for one in dataclasses.fields(value):
        item = getattr(value, one.name)
        factory = one.default_factory
        default = one.default if factory is dataclasses.MISSING else factory()
        if item != default:
            kept[one.name] = _drop_defaults(item)
    return kept


def _hash_datasets(cpt: CptConfig) -> dict[str, str]:
    """Return path → hash of the manifest of each dataset that exists."""
    sets = cpt.validation.sets.values() if cpt.validation is not None else ()
    paths = {source.path for source in cpt.sources.values()} | {one.path for one in sets}
    manifests = {path: REPOSITORY / f"{path}.manifest.json" for path in sorted(paths)}
    return {
        path: hashlib.sha256(manifest.read_bytes()).hexdigest()
        for path, manifest in manifests.items()
        if manifest.is_file()
    }


def read_curves(run_dir: Path) -> Curves | None:
    """Return the validation losses of a run, or None if it is not complete."""
    if not (run_dir / METRICS_NAME).is_file():
        return None
    records = list(read_metrics(run_dir / METRICS_NAME))
    steps = {record["step"]: record for record in records if record["kind"] == "step"}
    if not steps:
        return None
    last = steps[max(steps)]
    curves: dict[str, dict[int, float]] = {}
    for record in records:
        if record["kind"] == "validation" and (record["step"] == 0 or record["step"] in steps):
            tokens = steps[record["step"]]["tokens"] if record["step"] else 0
            curves.setdefault(record["name"], {})[tokens] = record["loss"]
    is_complete = last["step"] == last["total_steps"] and bool(curves)
    if not is_complete or any(max(points) != last["tokens"] for points in curves.values()):
        return None
    return {name: sorted(points.items()) for name, points in curves.items()}
