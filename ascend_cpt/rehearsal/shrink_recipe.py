"""Makes a rehearsal's `cpt:` section: a few steps with the user's sources, phases, schedule, guards and saving."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from ascend_cpt.recipe.phases import Phase
from ascend_cpt.run.resolved_run import ResolvedRun

RUN_NAME = "rehearsal"
NUM_STEPS = 4
SAVE_EVERY_STEPS = 2
VALIDATION_ROWS = 4
PEAK_LR = 1e-3
# Alarms compare with a trained model's loss, so random weights must not trigger them.
MAX_INCREASE = 100.0
_RATES = ("peak_lr", "final_lr", "base_final_lr", "base_peak_lr", "constant_lr")
_TOKENS = {"warmup_tokens": 1, "decay_tokens": 1, "cooldown_tokens": 1}  # steps of the rehearsal
_RATES_OF_MINDFORMERS = ("learning_rate", "lr_end", "warmup_lr_init")

MAX_LORA_RANK = 8
"""The small model's layers have fewer rows and columns than a usual rank."""


def shrink_recipe(
    cpt: Mapping[str, Any], run: ResolvedRun, *, seq_length: int, global_batch_size: int
) -> dict[str, Any]:
    """Return the section, with the user's dataset paths.

    Args:
        cpt: The user's `cpt` section as read from the file.
        run: The user's run.
        seq_length: Tokens per row in the rehearsal.
        global_batch_size: Rows per step in the rehearsal.
    """
    tokens = seq_length * global_batch_size
    small = copy.deepcopy(dict(cpt))
    small.update(
        run_name=RUN_NAME,
        seq_length=seq_length,
        global_batch_size=global_batch_size,
        checkpoint={"every": f"{SAVE_EVERY_STEPS} steps", "keep_last": 0}
        | {key: value for key, value in (cpt.get("checkpoint") or {}).items() if key == "background"},
        monitor={"print_every_steps": 1, "sinks": []},
    )
    small.pop("storage", None)
    small.pop("trainable", None)  # the small model has other layers and a smaller vocabulary
    if small.get("lora"):
        small["lora"]["rank"] = min(small["lora"]["rank"], MAX_LORA_RANK)
    if cpt.get("loss_chunks", 1) > 1:
        small["loss_chunks"] = 2  # divides the number of rows in every rehearsal
    small["train_tokens"] = NUM_STEPS * tokens
    if cpt.get("phases"):
        small.pop("train_tokens")
        small["phases"] = _shrink_phases(cpt["phases"], run, tokens)
        used = {name for phase in small["phases"] for name in phase.get("blend") or {}}
        used |= {cpt["replay"]["source"]} if cpt.get("replay") else set()
        if used:
            small["sources"] = {name: entry for name, entry in small["sources"].items() if name in used}
    for entry in small.get("sources", {}).values():
        entry.pop("max_epochs", None)
        entry.pop("max_tokens", None)
    if small.get("schedule"):
        small["schedule"] = _shrink_schedule(small["schedule"], run, tokens)
    # Tasks are left out because their items need the real model's vocabulary.
    validation = small.pop("validation", None) or {}
    if validation.get("sets"):
        small["validation"] = _shrink_validation(validation)
    return small


def shrink_lr_schedule(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return MindFormers' own `lr_schedule` with the rehearsal's rates and steps."""
    small = dict(section)
    peak = float(section.get("learning_rate") or PEAK_LR)
    for key in _RATES_OF_MINDFORMERS:
        if section.get(key):
            small[key] = float(section[key]) * PEAK_LR / peak
    for key in ("warmup_steps", "total_steps"):
        if isinstance(section.get(key), int):
            small[key] = min(section[key], 1 if key == "warmup_steps" else NUM_STEPS)
    return small


def _shrink_phases(phases: list[dict[str, Any]], run: ResolvedRun, tokens_per_step: int) -> list[dict[str, Any]]:
    """Return the first phases, spreading the steps evenly. Blends by epochs or by size become weights."""
    kept = phases[:NUM_STEPS]
    steps = [NUM_STEPS // len(kept) + (index < NUM_STEPS % len(kept)) for index in range(len(kept))]
    return [
        {key: value for key, value in phase.items() if key not in ("until", "upweight")}
        | {"tokens": num * tokens_per_step}
        | _shrink_blend(phase, run, resolved)
        for phase, resolved, num in zip(kept, run.phases, steps, strict=False)
    ]


def _shrink_blend(phase: dict[str, Any], run: ResolvedRun, resolved: Phase) -> dict[str, Any]:
    by_size = phase.get("upweight") or any(isinstance(weight, dict) for weight in (phase.get("blend") or {}).values())
    if not by_size or resolved.shares is None:
        return {}
    replay = run.config.cpt.replay
    return {
        "blend": {
            name: float(share) for name, share in resolved.shares.items() if replay is None or name != replay.source
        }
    }


def _shrink_schedule(schedule: dict[str, Any], run: ResolvedRun, tokens_per_step: int) -> dict[str, Any]:
    small = dict(schedule)
    factor = PEAK_LR / run.schedule.peak_lr if run.schedule else 1.0
    for key in _RATES:
        if schedule.get(key):
            small[key] = float(schedule[key]) * factor
    for key, steps in _TOKENS.items():
        if schedule.get(key):
            small[key] = steps * tokens_per_step
    small["cycles"] = 1
    # The rates above already include the scaling.
    small.pop("batch_scaling", None)
    return small


def _shrink_validation(validation: dict[str, Any]) -> dict[str, Any]:
    sets = copy.deepcopy(validation["sets"])
    for entry in sets.values():
        entry.pop("seq_length", None)
        entry.pop("patience", None)  # longer than the small run
        if entry.get("max_increase") is not None:
            entry["max_increase"] = MAX_INCREASE
    return {"sets": sets, "every": f"{SAVE_EVERY_STEPS} steps", "max_rows": VALIDATION_ROWS}
