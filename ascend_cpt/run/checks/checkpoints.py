"""Checks of `cpt.checkpoint.keep_best` and `cpt.export`."""

from __future__ import annotations

import math
from collections.abc import Collection

from ascend_cpt.config.loader import RunConfig
from ascend_cpt.config.schema import KeepBestConfig
from ascend_cpt.config.sections import nearest
from ascend_cpt.config.values import to_steps
from ascend_cpt.recipe.budget import Budget

EXPORTED_CHECKPOINTS = ("last", "best")


def find_checkpoint_problems(config: RunConfig) -> list[str]:
    """Return a problem for every keep_best or export setting that cannot work."""
    return _check_save(config) + _check_keep_best(config) + _check_export(config)


def note_keep_best(config: RunConfig, budget: Budget) -> tuple[str, ...]:
    """Return a warning if no checkpoint before the last one is saved at a validation step."""
    cpt = config.cpt
    if cpt.checkpoint.keep_best is None or cpt.validation is None:
        return ()
    saves = to_steps(cpt.checkpoint.every, budget.tokens_per_step)
    validates = to_steps(cpt.validation.every, budget.tokens_per_step)
    if saves and validates and math.lcm(saves, validates) < budget.total_steps:
        return ()
    intervals = ", ".join(
        f"{name} is {f'{steps} steps' if steps else 'not set'}"
        for name, steps in (("cpt.checkpoint.every", saves), ("cpt.validation.every", validates))
    )
    where = f"{config.locate('cpt', 'checkpoint', 'keep_best')}: cpt.checkpoint.keep_best"
    return (
        f"warning: {where}: only the last checkpoint is saved at a step with a validation ({intervals}); make one "
        "interval a multiple of the other",
    )


def _check_save(config: RunConfig) -> list[str]:
    cpt = config.cpt
    needing = {"cpt.export": cpt.export, "cpt.checkpoint.keep_best": cpt.checkpoint.keep_best}
    names = [name for name, value in needing.items() if value is not None]
    if cpt.checkpoint.save or not names:
        return []
    where = f"{config.locate('cpt', 'checkpoint', 'save')}: cpt.checkpoint.save"
    return [f"{where}: False saves nothing, but {' and '.join(names)} need checkpoints; remove one of them"]


def _check_keep_best(config: RunConfig) -> list[str]:
    best = config.cpt.checkpoint.keep_best
    if best is None:
        return []
    where = f"{config.locate('cpt', 'checkpoint', 'keep_best')}: cpt.checkpoint.keep_best"
    if (best.set is None) == (best.task is None):
        return [f"{where}: set either set (a validation set) or task"]
    validation = config.cpt.validation
    if best.set is not None:
        return _check_name(where, best, validation.sets if validation else (), "cpt.validation.sets")
    return _check_name(where, best, validation.tasks if validation else (), "cpt.validation.tasks")


def _check_name(where: str, best: KeepBestConfig, known: Collection[str], section: str) -> list[str]:
    key, name = ("set", best.set) if best.set is not None else ("task", best.task)
    assert name is not None
    if name in known:
        return []
    names = f"; choose from {', '.join(known)}" if known else f"; {section} is empty, add it there"
    return [f"{where}.{key}: {name!r} is not in {section}{nearest(name, known) or names}"]


def _check_export(config: RunConfig) -> list[str]:
    export = config.cpt.export
    if export is None:
        return []
    where = f"{config.locate('cpt', 'export')}: cpt.export"
    problems = []
    if export.when != "end":
        problems.append(f"{where}.when: {export.when!r} is unknown; only end is possible")
    if export.checkpoint not in EXPORTED_CHECKPOINTS:
        problems.append(f"{where}.checkpoint: {export.checkpoint!r} is unknown; choose last or best")
    elif export.checkpoint == "best" and config.cpt.checkpoint.keep_best is None:
        problems.append(f"{where}.checkpoint: best needs cpt.checkpoint.keep_best; set it, or choose last")
    if not config.cpt.storage.shared:
        problems.append(
            f"{where}: without shared storage no node has the files of all ranks; remove cpt.export, and after the run "
            "use python tools/gather_checkpoint.py NODE_0_RUN NODE_1_RUN ... --output GATHERED and then python "
            f"tools/convert_weights.py to-hf GATHERED {export.to}"
        )
    return problems
