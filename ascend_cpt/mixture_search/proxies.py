"""The configuration of the proxies: what is measured, and the YAML of a launch."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ascend_cpt.config.loader import RunConfig, load_config
from ascend_cpt.config.parallel_layout import uses_cpu
from ascend_cpt.errors import ConfigError
from ascend_cpt.files import write_text
from ascend_cpt.mixture_search.command_line import Order
from ascend_cpt.run.planning.assumed_run import choose_world_size
from ascend_cpt.run.planning.changes import nest
from ascend_cpt.run.resolve import load_run
from ascend_cpt.run.resolved_run import ResolvedRun

BASE_NAME = "base.yaml"
RUN_NAME = "proxies"
DEVICES_PER_NODE = 8
# Settings of a run that the proxies do not need, or that would end them early.
_ALARM_KEYS = ("max_increase", "on_increase", "max_drop", "on_drop", "patience")


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """A run of the proxy model on a blend."""

    kind: str
    """`design`, `given`, `confirm` or `anneal`."""
    shares: tuple[float, ...]
    seed: int


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all proxies have in common."""

    config: RunConfig
    run: ResolvedRun
    """The run of one proxy, on all sources."""
    tokens: dict[str, int]
    """Size of each source in tokens."""
    limits: tuple[float, ...]
    """Largest share of each source in the real run, by its `max_epochs`."""
    workers: int
    measures: tuple[str, ...]
    """Validation sets and tasks."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.tokens)

    @property
    def steps(self) -> int:
        """Number of steps of a proxy."""
        return self.run.budget.total_steps

    @property
    def in_one_process(self) -> bool:
        """Whether one process trains several proxies, so that they are compiled once."""
        return uses_cpu(self.config)


def prepare(order: Order, folder: Path) -> Setup:
    """Check the configuration of the proxies and open their datasets.

    Raises:
        CptError: the configuration or a dataset cannot be used.
    """
    bases = [str(path.absolute()) for path in (order.config, order.proxy) if path is not None]
    path = (folder / BASE_NAME).absolute()
    write_text(path, yaml.safe_dump({"base_config": bases, **nest(order.overrides)}, sort_keys=False))
    config = load_config(path)
    cpt = config.cpt
    if len(cpt.sources) < 2:
        raise ConfigError(f"{order.config}: cpt.sources has {len(cpt.sources)} source; a search needs at least 2")
    if cpt.validation is None or not (cpt.validation.sets or cpt.validation.tasks):
        raise ConfigError(f"{order.config}: nothing to measure; add validation sets or tasks to cpt.validation")
    if order.microanneal and (cpt.schedule is None or cpt.schedule.peak_lr is None):
        raise ConfigError("--microanneal: decays from cpt.schedule.peak_lr, which is not set; add it with --set")
    if order.workers is not None:
        workers = order.workers
    else:
        workers = 1 if uses_cpu(config) else choose_world_size(config, None, DEVICES_PER_NODE)
    sections = make_sections(config, [dict.fromkeys(cpt.sources, 1.0)], steps=None, linear=order.microanneal)
    write_text(path, yaml.safe_dump(sections, sort_keys=False))
    run = load_run(path, {}, world_size=workers)
    tokens = {source.name: source.num_rows * cpt.seq_length for source in run.sources}
    tokens = {name: tokens[name] for name in cpt.sources}
    measures = (*cpt.validation.sets, *cpt.validation.tasks)
    return Setup(
        config=config,
        run=run,
        tokens=tokens,
        limits=_find_limits(order, tokens),
        workers=workers,
        measures=measures,
    )


def _find_limits(order: Order, tokens: Mapping[str, int]) -> tuple[float, ...]:
    """Return the largest share of each source in the run of the configuration without the proxies' changes."""
    cpt = load_config(order.config).cpt
    limits = []
    for name, size in tokens.items():
        max_epochs = cpt.sources[name].max_epochs if name in cpt.sources else None
        if max_epochs is None or cpt.train_tokens is None:
            limits.append(1.0)
        else:
            limits.append(min(1.0, max_epochs * size / cpt.train_tokens))
    return tuple(limits)


def make_sections(
    config: RunConfig,
    blends: Sequence[Mapping[str, float]],
    *,
    steps: int | None,
    linear: bool,
    seed: int | None = None,
    output_dir: Path | None = None,
    tokens_per_step: int = 1,
) -> dict[str, Any]:
    """Return the sections of a launch that trains one proxy after another.

    Args:
        config: The proxies' configuration.
        blends: Weights above 0 of each proxy's sources.
        steps: Steps of a proxy; None if not known yet, with a single blend.
        linear: Whether the learning rate decays linearly to 0 from the first step, for microanneals.
        seed: Seed of the row order and of random weights; None keeps the configured one.
        output_dir: Parent of the run folder.
        tokens_per_step: Tokens of a step.
    """
    data = copy.deepcopy(dict(config.tree.data))
    cpt = data["cpt"]
    for key in ("phases", "replay", "export", "checkpoint", "restart_phases", "run_name"):
        cpt.pop(key, None)
    for key in ("base_config", "resume_training"):
        data.pop(key, None)
    used = {name for blend in blends for name in blend}
    cpt["sources"] = {name: source for name, source in cpt["sources"].items() if name in used}
    for source in cpt["sources"].values():
        source.pop("max_epochs", None)
    for entry in (*cpt["validation"].get("sets", {}).values(), *cpt["validation"].get("tasks", {}).values()):
        for key in _ALARM_KEYS:
            entry.pop(key, None)
    cpt["validation"].pop("every", None)
    cpt["run_name"], cpt["checkpoint"] = RUN_NAME, {"save": False}
    cpt["monitor"] = {**(cpt.get("monitor") or {}), "sinks": []}
    if linear:
        peak = (cpt.get("schedule") or {}).get("peak_lr")
        cpt["schedule"] = {"kind": "linear", "peak_lr": peak, "final_lr": 0, "warmup_tokens": 0}
    if seed is not None:
        data["seed"] = seed
    if output_dir is not None:
        data["output_dir"] = str(output_dir)
    phases: list[dict[str, Any]] = [{"name": f"proxy {n}", "blend": dict(b)} for n, b in enumerate(blends, start=1)]
    if steps is not None:
        cpt.pop("train_tokens", None)
        cpt["validation"]["every"] = f"{steps} steps"
        for phase in phases:
            phase["tokens"] = steps * tokens_per_step
        cpt["restart_phases"] = uses_cpu(config)
    cpt["phases"] = phases
    return data


def describe_settings(setup: Setup, order: Order) -> dict[str, Any]:
    """Return what results are comparable for: configuration, data and initial weights."""
    data = make_sections(setup.config, [dict.fromkeys(setup.names, 1.0)], steps=None, linear=order.microanneal)
    data["cpt"].pop("phases")
    data.pop("output_dir", None)
    data.pop("seed", None)
    datasets = {**{one.name: one for one in setup.run.sources}, **{f"valid {o.name}": o for o in setup.run.validation}}
    return {
        "configuration": data,
        "digests": {name: dataset.manifest.digest for name, dataset in datasets.items()},
        "weights": _list_files(setup.config.initial_weights),
        "microanneal": order.microanneal,
    }


def _list_files(weights: str | None) -> dict[str, list[int]]:
    """Return name → size and time of modification (ns) of the files with the initial weights."""
    if weights in (None, "random"):
        return {}
    root = Path(str(weights))
    found: dict[str, list[int]] = {}
    for folder, _, names in os.walk(root):
        for name in sorted(names):
            if name.endswith((".safetensors", ".ckpt", "cpt_state.json")):
                status = Path(folder, name).stat()
                found[str(Path(folder, name).relative_to(root))] = [status.st_size, status.st_mtime_ns]
    return found


def to_blend(names: Sequence[str], shares: Sequence[float]) -> dict[str, float]:
    """Return the shares above 0 by name, as in `blend:`."""
    return {name: float(np.round(share, 6)) for name, share in zip(names, shares, strict=True) if share > 0}
