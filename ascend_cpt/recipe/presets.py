"""Learning-rate presets from the literature, each with its values and their source.

The presets are meant for different situations and contradict each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from ascend_cpt.config.schema import BatchScalingConfig, ScheduleConfig
from ascend_cpt.config.values import format_count
from ascend_cpt.recipe.budget import count_steps
from ascend_cpt.recipe.schedule import Schedule, build_schedule

MAX_WARMUP_SHARE = 0.5
"""Upper limit on the warmup of per-epoch presets, as a share of the run."""
SHORT_WARMUP_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Values for keys that the configuration does not set.

    The peak is `peak_over_base_final` × the final rate of the base model's pretraining, or `peak_over_base_peak` × its
    peak rate; the final rate is `final_over_peak` × the peak. With two phases, `switch_lr_fraction` is the default end
    of the first one.
    """

    kind: str
    source: str
    peak_over_base_final: float | None = None
    peak_over_base_peak: float | None = None
    final_over_peak: float
    warmup_share: float = 0.0
    warmup_per_epoch: bool = False
    min_warmup_tokens: int = 0
    """The warmup has at least this many tokens, but this minimum is at most SHORT_WARMUP_SHARE of the run."""
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
"""For data close to the base model's and a budget of tens to hundreds of billions of tokens.

Parmar et al., "Reuse, Don't Retrain" (arXiv 2407.07263): no warmup (all warmups tried were worse), the peak is the
final rate of pretraining (4.5e-5 in the paper), cosine to 1/100 of it. The second blend (10 % question answering)
starts when the rate has decayed to 1/5 of the peak, which was better than 1/2, 1/10 and 1/50.
"""

REWARM = Preset(
    kind="cosine",
    source="arXiv 2403.08763",
    peak_over_base_peak=0.5,
    final_over_peak=0.1,
    warmup_share=0.01,
    wants_replay=True,
)
"""For a strong shift (another language or domain) and a large budget.

Ibrahim et al. (arXiv 2403.08763): warm up over 1 % of the tokens, cosine decay to 1/10 of the peak, and replay old
data: 5 % for a weak shift, 25 % for a strong one. The paper uses the base model's peak; the default here is half of it,
which causes less forgetting. Set `peak_lr` for another value. The peak matters more than the length of the warmup.
"""

GENTLE = Preset(
    kind="cosine",
    source="the rule of thumb for 7B models below 100B tokens",
    peak_over_base_peak=0.1,
    final_over_peak=0.1,
    warmup_share=0.01,
    warmup_per_epoch=True,
    min_warmup_tokens=100_000_000,
)
"""For a small budget of a few billion tokens.

Practitioners' rule of thumb: a tenth of the base model's peak (3e-4 → 3e-5 for 7B models), a warmup of 1 % of the
tokens per epoch (1 epoch: 1 %, 3 epochs: 3 %), and rates scaled with the square root of the batch (`batch_scaling`).
The rule gives no final rate; a tenth of the peak is common. For less data its warmup is longer, but no number is given:
here a run below 10B tokens also has a warmup of 100M tokens (1 % of 10B), but at most a tenth of the run, which is the
share in PAI's sample of 1.6M tokens. The warmup is limited to MAX_WARMUP_SHARE.
"""

WSD = Preset(
    kind="wsd",
    source="arXiv 2404.06395",
    final_over_peak=0.1,
    warmup_share=0.01,
    decay_share=0.1,
)
"""For a growing dataset: the stable part can be extended at any time, and the decay is run once at the end.

Hu et al., "MiniCPM" (arXiv 2404.06395): a decay over the last 10 % of the tokens is sufficient, 2.5 % is not. `peak_lr`
must be set.
"""

PRESETS = {"reuse": REUSE, "rewarm": REWARM, "gentle": GENTLE, "wsd": WSD}


def resolve_schedule(
    config: ScheduleConfig,
    *,
    total_steps: int,
    tokens_per_step: int,
    num_epochs: float,
    count_warmup_steps: Callable[[int], int] | None = None,
) -> tuple[Schedule, list[str]]:
    """Return a run's schedule, and notes on derived values, scaled values and unusual settings.

    Args:
        config: `cpt.schedule`.
        total_steps: Number of steps of the run.
        tokens_per_step: Tokens per optimizer step.
        num_epochs: Number of passes over all data.
        count_warmup_steps: Converts warmup tokens to steps, for a run whose first steps are smaller.

    Raises:
        ValueError: a key is missing or inconsistent. The message starts with the key if there is one.
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
            f"tokens per step) = {factor:.4g}: peak {peak_lr:g}, final {final_lr:g}"
        )
    count_last = partial(count_steps, tokens_per_step=tokens_per_step)
    run_size, count_first = (total_steps, total_steps * tokens_per_step), count_warmup_steps or count_last
    warmup_steps = _resolve_warmup(config, preset, run_size, count_first, num_epochs, notes)
    decay_share = preset.decay_share if preset else None
    decay_steps = _count_part("decay", config.decay_tokens, config.decay_share, total_steps, count_last, decay_share)
    if kind == "wsd" and decay_steps is None:
        raise ValueError(
            "decay_share: missing; set the share of the tokens over which the rate decays, for example 0.1"
        )
    for name in ("decay_tokens", "decay_share", "decay_shape"):
        if kind not in ("wsd", "infinite") and getattr(config, name) is not None:
            raise ValueError(f"{name}: only valid for kind wsd or infinite, not {kind}")
    for name in ("cooldown_tokens", "constant_lr"):
        if (kind == "infinite") != (getattr(config, name) is not None):
            raise ValueError(
                f"{name}: {'missing' if kind == 'infinite' else f'only valid for kind infinite, not {kind}'}"
            )
    schedule = build_schedule(
        kind,
        peak_lr=peak_lr,
        final_lr=final_lr,
        total_steps=total_steps,
        warmup_steps=warmup_steps,
        decay_steps=decay_steps,
        decay_shape=config.decay_shape or "linear",
        cooldown_steps=_count_part("cooldown", config.cooldown_tokens, None, total_steps, count_last, None),
        constant_lr=constant_lr,
        cycles=config.cycles,
    )
    return schedule, notes


def find_preset(config: ScheduleConfig) -> Preset | None:
    """Return a configuration's preset, or None if it has none.

    Raises:
        ValueError: the preset is unknown, or the configuration contradicts it.
    """
    if config.preset is None:
        return None
    if config.preset not in PRESETS:
        raise ValueError(f"preset: {config.preset!r} is unknown; choose one of {', '.join(PRESETS)}")
    preset = PRESETS[config.preset]
    if config.kind not in (None, preset.kind):
        raise ValueError(
            f"kind: preset {config.preset} is a {preset.kind} schedule, not {config.kind}; remove one of them"
        )
    return preset


def _resolve_peak(config: ScheduleConfig, preset: Preset | None) -> float:
    bases = {
        "base_final_lr": (config.base_final_lr, preset.peak_over_base_final if preset else None),
        "base_peak_lr": (config.base_peak_lr, preset.peak_over_base_peak if preset else None),
    }
    for name, (value, factor) in bases.items():
        if value is not None and (factor is None or config.peak_lr is not None):
            raise ValueError(f"{name}: has no effect here; remove it, or use a preset that derives the peak from it")
    if config.peak_lr is not None:
        return config.peak_lr
    for name, (value, factor) in bases.items():
        if factor is not None:
            if value is None:
                raise ValueError(f"peak_lr: missing; preset {config.preset} derives it from {name}; set one of the two")
            return value * factor
    raise ValueError("peak_lr: missing; set the rate after the warmup")


def _scale_by_batch(config: BatchScalingConfig, tokens_per_step: int) -> float:
    if config.rule != "sqrt":
        raise ValueError(f"batch_scaling.rule: {config.rule!r} is unknown; use sqrt")
    if config.base_tokens < 1:
        raise ValueError("batch_scaling.base_tokens: must be above 0")
    return math.sqrt(tokens_per_step / config.base_tokens)


def _resolve_warmup(
    config: ScheduleConfig,
    preset: Preset | None,
    run_size: tuple[int, int],
    count_tokens: Callable[[int], int],
    num_epochs: float,
    notes: list[str],
) -> int:
    """Return the number of warmup steps. `run_size` is the run's number of steps and of tokens."""
    total_steps, num_tokens = run_size
    default_share = preset.warmup_share if preset else 0.0
    if preset and preset.warmup_per_epoch:
        share_per_epoch = default_share
        default_share *= max(1, math.ceil(num_epochs))
        if default_share > MAX_WARMUP_SHARE:
            default_share = MAX_WARMUP_SHARE
            if config.warmup_tokens is None and config.warmup_share is None:
                notes.append(
                    f"warning: preset {config.preset}: a warmup of {share_per_epoch:.0%} for each of {num_epochs:.4g} "
                    f"epochs is too long; it is limited to {MAX_WARMUP_SHARE:.0%} of the run; set "
                    "cpt.schedule.warmup_share for another length"
                )
    minimum = _find_minimum_share(preset, num_tokens)
    if minimum > default_share:
        default_share = minimum
        if config.warmup_tokens is None and config.warmup_share is None:
            notes.append(f"preset {config.preset}: a warmup of {minimum:.3g} of the run, because the run is short")
    steps = _count_part("warmup", config.warmup_tokens, config.warmup_share, total_steps, count_tokens, default_share)
    if preset is REUSE and steps:
        notes.append(f"warning: preset reuse has no warmup; all warmups tried were worse ({preset.source})")
    return steps or 0


def _find_minimum_share(preset: Preset | None, num_tokens: int) -> float:
    if preset is None or not preset.min_warmup_tokens:
        return 0.0
    return min(preset.min_warmup_tokens / num_tokens, SHORT_WARMUP_SHARE)


def _count_part(
    name: str,
    tokens: int | None,
    share: float | None,
    total_steps: int,
    count_tokens: Callable[[int], int],
    default_share: float | None,
) -> int | None:
    """Return the length of part of a run in steps (at least 1 unless set to 0), or None if no length is set."""
    if tokens is not None and share is not None:
        raise ValueError(f"{name}_tokens and {name}_share are both set; keep one")
    if tokens is not None:
        try:
            return count_tokens(tokens) if tokens else 0
        except ValueError as error:
            raise ValueError(f"{name}_tokens: {error}") from None
    if share is None:
        share = default_share
    if share is None or share == 0:
        return None if share is None else 0
    if not 0 < share < 1:
        raise ValueError(f"{name}_share: must lie between 0 and 1, got {share}")
    return max(1, round(share * total_steps))
