"""Learning-rate presets: recipes of the literature, each with its figures and where they come from.

They answer different situations and contradict each other on purpose; none is a mean of others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ascend_cpt.config.schema import BatchScalingConfig, ScheduleConfig
from ascend_cpt.config.values import format_count
from ascend_cpt.recipe.budget import count_steps
from ascend_cpt.recipe.schedule import Schedule, build_schedule

# Of a warmup that a preset derives from the number of epochs.
MAX_WARMUP_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What a preset fills in where the configuration is silent.

    The peak is `peak_over_base_final` × the rate that the base model's pretraining ended with, or `peak_over_base_peak`
    × its highest rate; the final rate is `final_over_peak` × the peak. `switch_lr_fraction` ends the first of two
    phases that names no end of its own.
    """

    kind: str
    source: str
    peak_over_base_final: float | None = None
    peak_over_base_peak: float | None = None
    final_over_peak: float
    warmup_share: float = 0.0
    warmup_per_epoch: bool = False
    decay_share: float | None = None
    switch_lr_fraction: float | None = None
    wants_replay: bool = False


REUSE = Preset(
    kind="cosine",
    source="arXiv 2407.07263",
    peak_over_base_final=1.0,
    final_over_peak=0.01,
    switch_lr_fraction=0.2,
)
"""Little shift from the base model's data, a budget of tens to hundreds of billions of tokens.

Parmar et al., "Reuse, Don't Retrain" (arXiv 2407.07263): no warmup (every warmup tried was worse), the peak is the rate
that pretraining ended with (4.5e-5 there), cosine to 1/100 of it, and the second blend (question answering at 10 %)
starts where the rate has fallen to 1/5 of the peak, which was better than 1/2, 1/10 and 1/50.
"""

REWARM = Preset(
    kind="cosine",
    source="arXiv 2403.08763",
    peak_over_base_peak=0.5,
    final_over_peak=0.1,
    warmup_share=0.01,
    wants_replay=True,
)
"""A strong shift (another language, another field) with a large budget.

Ibrahim et al. (arXiv 2403.08763): warm up over 1 % of the tokens, decay by a cosine to 1/10 of the peak, and replay the
old data: 5 % for a weak shift, 25 % for a strong one. They go back to the base model's own peak; half of it, the
default here, forgets less. Give `peak_lr` to choose. The length of the warmup hardly matters, the peak does.
"""

GENTLE = Preset(
    kind="cosine",
    source="the rule of thumb for 7B models below 100B tokens",
    peak_over_base_peak=0.1,
    final_over_peak=0.1,
    warmup_share=0.01,
    warmup_per_epoch=True,
)
"""A small budget, a few billion tokens.

Practitioners' rule of thumb: a tenth of the base model's peak (3e-4 → 3e-5 for 7B models), a warmup of 1 % of the
tokens for every epoch over the data (1 epoch: 1 %, 3 epochs: 3 %), and the rate grows with the square root of the batch
(`batch_scaling`). It names no final rate; a tenth of the peak is customary.
"""

WSD = Preset(
    kind="wsd",
    source="arXiv 2404.06395",
    final_over_peak=0.1,
    warmup_share=0.01,
    decay_share=0.1,
)
"""Data that keep coming: the stable part can be extended at any time, the decay is paid once.

Hu et al., "MiniCPM" (arXiv 2404.06395): a decay over the last 10 % of the tokens is enough, 2.5 % is not. `peak_lr` is
yours.
"""

PRESETS = {"reuse": REUSE, "rewarm": REWARM, "gentle": GENTLE, "wsd": WSD}


def resolve_schedule(
    config: ScheduleConfig, *, total_steps: int, tokens_per_step: int, num_epochs: float
) -> tuple[Schedule, list[str]]:
    """Return the schedule of a run, and notes on what was filled in, scaled or is unwise.

    Args:
        config: `cpt.schedule`.
        total_steps: Steps of the run.
        tokens_per_step: Tokens of an optimizer step.
        num_epochs: Passes over all data of the run.

    Raises:
        ValueError: what is missing or does not fit; the text begins with the key where there is one.
    """
    notes: list[str] = []
    preset = find_preset(config)
    kind = config.kind or (preset.kind if preset else "cosine")
    peak_lr = _resolve_peak(config, preset)
    final_lr = config.final_lr
    if final_lr is None:
        final_lr = peak_lr * preset.final_over_peak if preset else 0.0
    if preset:
        notes.append(f"preset {config.preset} ({preset.source}): peak {peak_lr:g}, final {final_lr:g}")
    constant_lr = config.constant_lr
    if config.batch_scaling is not None:
        factor = _scale_by_batch(config.batch_scaling, tokens_per_step)
        peak_lr, final_lr = peak_lr * factor, final_lr * factor
        constant_lr = None if constant_lr is None else constant_lr * factor
        notes.append(
            f"batch scaling: √({format_count(tokens_per_step)} / {format_count(config.batch_scaling.base_tokens)} "
            f"tokens a step) = {factor:.4g}: peak {peak_lr:g}, final {final_lr:g}"
        )
    warmup_steps = _resolve_warmup(config, preset, total_steps, tokens_per_step, num_epochs, notes)
    decay_steps = _count_part(
        "decay",
        config.decay_tokens,
        config.decay_share,
        total_steps,
        tokens_per_step,
        preset.decay_share if preset else None,
    )
    if kind == "wsd" and decay_steps is None:
        raise ValueError(
            "decay_share: is missing; give the share of the tokens over which the rate decays, such as 0.1"
        )
    for name in ("decay_tokens", "decay_share", "decay_shape"):
        if kind not in ("wsd", "infinite") and getattr(config, name) is not None:
            raise ValueError(f"{name}: goes with kind wsd or infinite, not {kind}")
    for name in ("cooldown_tokens", "constant_lr"):
        if (kind == "infinite") != (getattr(config, name) is not None):
            raise ValueError(
                f"{name}: {'is missing' if kind == 'infinite' else f'goes with kind infinite, not {kind}'}"
            )
    schedule = build_schedule(
        kind,
        peak_lr=peak_lr,
        final_lr=final_lr,
        total_steps=total_steps,
        warmup_steps=warmup_steps,
        decay_steps=decay_steps,
        decay_shape=config.decay_shape or "linear",
        cooldown_steps=_count_part("cooldown", config.cooldown_tokens, None, total_steps, tokens_per_step, None),
        constant_lr=constant_lr,
        cycles=config.cycles,
    )
    return schedule, notes


def find_preset(config: ScheduleConfig) -> Preset | None:
    """Return the preset that a configuration names.

    Raises:
        ValueError: there is none of that name, or the configuration contradicts it.
    """
    if config.preset is None:
        return None
    if config.preset not in PRESETS:
        raise ValueError(f"preset: {config.preset!r} is unknown; choose one of {', '.join(PRESETS)}")
    preset = PRESETS[config.preset]
    if config.kind not in (None, preset.kind):
        raise ValueError(
            f"kind: preset {config.preset} is a {preset.kind} schedule, not {config.kind}; drop one of the two"
        )
    return preset


def _resolve_peak(config: ScheduleConfig, preset: Preset | None) -> float:
    bases = {
        "base_final_lr": (config.base_final_lr, preset.peak_over_base_final if preset else None),
        "base_peak_lr": (config.base_peak_lr, preset.peak_over_base_peak if preset else None),
    }
    for name, (value, factor) in bases.items():
        if value is not None and (factor is None or config.peak_lr is not None):
            raise ValueError(f"{name}: has no use here; it goes with a preset that derives the peak from it")
    if config.peak_lr is not None:
        return config.peak_lr
    for name, (value, factor) in bases.items():
        if factor is not None:
            if value is None:
                raise ValueError(
                    f"peak_lr: is missing; preset {config.preset} derives it from {name}, or give it itself"
                )
            return value * factor
    raise ValueError("peak_lr: is missing; give the rate after the warmup")


def _scale_by_batch(config: BatchScalingConfig, tokens_per_step: int) -> float:
    if config.rule != "sqrt":
        raise ValueError(f"batch_scaling.rule: {config.rule!r} is unknown; there is sqrt")
    if config.base_tokens < 1:
        raise ValueError("batch_scaling.base_tokens: must be above 0")
    return math.sqrt(tokens_per_step / config.base_tokens)


def _resolve_warmup(
    config: ScheduleConfig,
    preset: Preset | None,
    total_steps: int,
    tokens_per_step: int,
    num_epochs: float,
    notes: list[str],
) -> int:
    default_share = preset.warmup_share if preset else 0.0
    if preset and preset.warmup_per_epoch:
        default_share *= max(1, math.ceil(num_epochs))
        if default_share > MAX_WARMUP_SHARE:
            default_share = MAX_WARMUP_SHARE
            notes.append(
                f"warning: {num_epochs:.3g} epochs of warmup at {preset.warmup_share:.0%} each would be most of the "
                "run; the "
                f"warmup is {MAX_WARMUP_SHARE:.0%} of it; set cpt.schedule.warmup_share for another one"
            )
    steps = _count_part(
        "warmup", config.warmup_tokens, config.warmup_share, total_steps, tokens_per_step, default_share
    )
    if preset is REUSE and steps:
        notes.append(f"warning: preset reuse has no warmup, every warmup tried was worse ({preset.source})")
    return steps or 0


def _count_part(
    name: str,
    tokens: int | None,
    share: float | None,
    total_steps: int,
    tokens_per_step: int,
    default_share: float | None,
) -> int | None:
    """Return a part of the run in steps, never silently 0; None when its length is not given."""
    if tokens is not None and share is not None:
        raise ValueError(f"{name}_tokens and {name}_share are both set; keep one")
    if tokens is not None:
        try:
            return count_steps(tokens, tokens_per_step) if tokens else 0
        except ValueError as error:
            raise ValueError(f"{name}_tokens: {error}") from None
    if share is None:
        share = default_share
    if share is None or share == 0:
        return None if share is None else 0
    if not 0 < share < 1:
        raise ValueError(f"{name}_share: must lie between 0 and 1, got {share}")
    return max(1, round(share * total_steps))
