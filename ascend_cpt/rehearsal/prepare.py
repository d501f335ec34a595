"""Writes what a rehearsal runs on: small datasets, start weights, and the configurations of its two runs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ascend_cpt.config.loader import load_config
from ascend_cpt.config.parallel_layout import uses_cpu
from ascend_cpt.errors import ConfigError
from ascend_cpt.files import write_text
from ascend_cpt.rehearsal.dataset import Vocabulary, has_dataset, make_dataset
from ascend_cpt.rehearsal.shrink import HUGGING_FACE, RUN, Rehearsal, shrink, shrink_to_one_device
from ascend_cpt.rehearsal.shrink_model import EOD_ID, PAD_ID
from ascend_cpt.rehearsal.shrink_recipe import NUM_STEPS, VALIDATION_ROWS
from ascend_cpt.rehearsal.weights import write_random_folder
from ascend_cpt.run.planning.assumed_run import choose_world_size, resolve_without_data
from ascend_cpt.run.resolve import load_run
from ascend_cpt.run.resolved_run import ResolvedRun
from ascend_cpt.weights.hf_folder import HfFolder, is_hf_folder

RUN_NAME = "rehearsal"
DEVICES_PER_NODE = 8
_HALF = ("bfloat16", "float16", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True)
class SmallRun:
    """One of the two runs that are started."""

    config: Path
    folder: Path
    """Its output, its logs and what it prints are here."""
    num_processes: int

    @property
    def run_dir(self) -> Path:
        """The run folder."""
        return self.folder / "output" / RUN_NAME


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything that is run."""

    parallel: SmallRun
    one: SmallRun
    start: Path
    """Hugging Face folder of the start weights."""
    origins: Mapping[str, str]
    """Dataset → what its rows were made from."""


def load_user_run(path: Path, overrides: Mapping[str, Any]) -> ResolvedRun:
    """Resolve the user's configuration; datasets and start weights that are here are checked against it.

    Raises:
        CptError: when it cannot be trained.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such configuration file; give the YAML that run_cpt.py is started with")
    config = load_config(path, overrides)
    if uses_cpu(config):
        raise ConfigError(
            f"{config.locate('context', 'device_target')}: context.device_target is CPU, but a rehearsal is of a job "
            "on Ascend; start this configuration itself, or add --set context.device_target=Ascend"
        )
    world_size = choose_world_size(config, None, DEVICES_PER_NODE)
    sets = config.cpt.validation.sets if config.cpt.validation else {}
    paths = [entry.path for entry in config.cpt.sources.values()] + [entry.path for entry in sets.values()]
    if paths and all(has_dataset(path) for path in paths):
        run = load_run(path, overrides, world_size=world_size)
    else:
        run = resolve_without_data(config, world_size)
    given = config.cpt.init_from or config.mindformers.get("load_checkpoint")
    if given and is_hf_folder(Path(given)):
        folder = HfFolder(Path(given))
        folder.check()
        folder.check_model(run.model)
    return run


def shrink_run(run: ResolvedRun, max_processes: int) -> tuple[Rehearsal, tuple[str, ...]]:
    """Return the rehearsal of a run, computed in float32, and the lines of what changed.

    Raises:
        ClusterError: when `max_processes` is too few.
    """
    rehearsal = shrink(run, max_processes)
    changes = list(rehearsal.changes)
    model = rehearsal.sections["model"]["model_config"]
    for key, value in model.items():
        if key.endswith("dtype") and value in _HALF:
            model[key] = "float32"
            changes.append(f"{key}: {value} -> float32, so that results can be compared with one device")
    if rehearsal.starts_from != HUGGING_FACE:
        name = "a run folder" if rehearsal.starts_from == RUN else rehearsal.starts_from
        changes.append(f"start weights: {name} -> a Hugging Face folder, so that one device starts from the same")
    return rehearsal, tuple(changes)


def prepare(run: ResolvedRun, rehearsal: Rehearsal, folder: Path) -> Prepared:
    """Write datasets, weights and configurations into `folder`.

    Raises:
        DataError: when a dataset of the user is damaged.
    """
    start = folder / "start"
    write_random_folder(rehearsal.model, start, seed=run.seed)
    sections = copy.deepcopy(rehearsal.sections)
    sections["cpt"]["init_from"] = str(start)
    origins = _write_datasets(sections["cpt"], rehearsal, folder / "data", run.seed)
    one = shrink_to_one_device(rehearsal)
    return Prepared(
        parallel=_write_run(folder / "parallel", sections, rehearsal.layout.world_size),
        one=_write_run(folder / "one_device", {**one.sections, "cpt": sections["cpt"]}, 1),
        start=start,
        origins=origins,
    )


def _write_datasets(cpt: dict[str, Any], rehearsal: Rehearsal, folder: Path, seed: int) -> dict[str, str]:
    """Pack a small dataset in place of each one that the `cpt` section names, which then names the small one."""
    vocabulary = Vocabulary(size=int(rehearsal.model["vocab_size"]), eod_id=EOD_ID, pad_id=PAD_ID)
    train_rows = NUM_STEPS * rehearsal.global_batch_size
    validation = (cpt.get("validation") or {}).get("sets") or {}
    origins: dict[str, str] = {}
    for kind, entries, num_rows in (
        ("source", cpt["sources"], train_rows),
        ("validation", validation, VALIDATION_ROWS),
    ):
        for index, (name, entry) in enumerate(entries.items()):
            prefix = folder / f"{kind}_{index}"
            manifest = make_dataset(
                entry["path"],
                prefix,
                num_rows=num_rows,
                seq_length=rehearsal.seq_length,
                vocabulary=vocabulary,
                seed=seed,
            )
            origins[f"{kind} {name}"] = str(manifest.settings["origin"])
            entry["path"] = str(prefix)
    return origins


def _write_run(folder: Path, sections: Mapping[str, Any], num_processes: int) -> SmallRun:
    folder.mkdir(parents=True)
    config = folder / "config.yaml"
    # The order of sources is part of a run.
    text = yaml.safe_dump({**sections, "output_dir": str(folder / "output")}, sort_keys=False)
    write_text(config, text)
    return SmallRun(config=config, folder=folder, num_processes=num_processes)
