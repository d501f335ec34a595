"""Records how evenly the routers of a mixture of experts distribute the tokens, and stops a run that uses few experts.

No token is dropped: an expert computes all tokens that choose it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ExpertsRecord:
    """The routers' losses and the experts' loads, as means over all tokens of the last `num_steps` steps.

    A load is an expert's number of tokens, as a multiple of the mean over the experts of its layer.
    """

    step: int
    num_steps: int
    balance_loss: float
    """Mean over the layers, without its weight in the training loss: 1 if all experts have the same load."""
    z_loss: float
    """Mean over the layers, without its weight in the training loss."""
    entropy: float
    """Entropy of the load divided by that of equal loads, 0 to 1; mean over the layers."""
    max_load: float
    """The largest load of any expert."""
    max_load_layer: int
    max_load_expert: int
    num_unused: int
    """Number of experts without a token."""
    layer_entropy: list[float]
    """Entropy of each layer, 0 to 1."""
    layer_max_load: list[float]
    """Largest load in each layer."""


def make_record(sums: Floats, *, step: int, num_steps: int) -> ExpertsRecord:
    """Return the record for sums over micro batches: each layer's shares of its experts, balance loss and z-loss."""
    loads, losses = sums[:, :-2], sums[:, -2:]
    num_batches = loads.sum(axis=1, keepdims=True)
    shares, means = loads / num_batches, losses / num_batches
    num_experts = shares.shape[1]
    logs = np.log(np.where(shares > 0, shares, 1.0))
    entropy = -(shares * logs).sum(axis=1) / (math.log(num_experts) if num_experts > 1 else 1.0)
    multiples = shares * num_experts
    layer, expert = np.unravel_index(int(multiples.argmax()), multiples.shape)
    return ExpertsRecord(
        step=step,
        num_steps=num_steps,
        balance_loss=float(means[:, 0].mean()),
        z_loss=float(means[:, 1].mean()),
        entropy=float(entropy.mean()),
        max_load=float(multiples.max()),
        max_load_layer=int(layer),
        max_load_expert=int(expert),
        num_unused=int((shares == 0).sum()),
        layer_entropy=_round(entropy),
        layer_max_load=_round(multiples.max(axis=1)),
    )


def count_tokens(sums: Floats, num_choices: int) -> list[list[int]]:
    """Return the tokens of each layer's experts, if the routers made `num_choices` choices of an expert per layer."""
    loads = sums[:, :-2]
    return [[round(float(load)) for load in layer] for layer in loads / loads.sum(axis=1, keepdims=True) * num_choices]


def find_overload(record: ExpertsRecord, max_load: float | None) -> str:
    """Return why `cpt.guards.max_expert_load` stops the run, or an empty string."""
    if max_load is None or record.max_load <= max_load:
        return ""
    return (
        f"expert {record.max_load_expert} of layer {record.max_load_layer} processed {record.max_load:.2f} times the "
        f"mean number of tokens in the last {record.num_steps} steps, more than cpt.guards.max_expert_load {max_load:g}"
    )


def format_experts(record: ExpertsRecord) -> str:
    """Return the record's line."""
    return f"experts at {describe_experts(vars(record))}"


def describe_experts(values: Mapping[str, Any]) -> str:
    """Return a line from a record's JSON values."""
    unused = f", {values['num_unused']} unused" if values["num_unused"] else ""
    return (
        f"step {values['step']}: balance loss {float(values['balance_loss']):.4f}, z-loss "
        f"{float(values['z_loss']):.4g}, load entropy {float(values['entropy']):.4f}, largest load "
        f"{float(values['max_load']):.2f} × the mean (layer {values['max_load_layer']}, expert "
        f"{values['max_load_expert']}){unused}"
    )


def to_expert_scalars(record: ExpertsRecord) -> dict[str, float]:
    """Return the values to plot against steps."""
    names = ("balance_loss", "z_loss", "entropy", "max_load", "num_unused")
    return {f"experts/{name}": float(getattr(record, name)) for name in names}


def _round(values: Any) -> list[float]:
    return [float(f"{value:.6g}") for value in values]
