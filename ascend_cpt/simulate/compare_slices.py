"""Compares the parameter slices that MindSpore compiled for a rank with the plan."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ascend_cpt.backend.simulated_rank.messages import ParameterOnRank
from ascend_cpt.model.families import is_router_state
from ascend_cpt.plan.case import TrainingCase
from ascend_cpt.plan.slices import slice_parameters
from ascend_cpt.simulate.run_rank import RankResult

# Prefixes of parameters that the training step adds: accumulated gradients and Adam's moments.
ADDED_PREFIXES = ("accu_grads.", "adam_m.", "adam_v.")
# Scalar parameters of MindFormers, listed only on a single device.
SCALARS = {"scale_sense", "global_step", "lm_loss", "mtp_loss", "aux_loss", "indexer_loss"}


def select_model_parameters(parameters: Iterable[ParameterOnRank]) -> list[ParameterOnRank]:
    """Return the parameters of the model itself."""
    return [
        parameter
        for parameter in parameters
        if not parameter.name.startswith(ADDED_PREFIXES)
        and parameter.name not in SCALARS
        and not is_router_state(parameter.name)
    ]


def count_elements(parameters: Iterable[ParameterOnRank]) -> int:
    """Return the number of elements of `parameters` stored on the rank."""
    return sum(math.prod(parameter.stored_shape) for parameter in parameters)


def find_differences(case: TrainingCase, result: RankResult) -> list[str]:
    """Return a line for each parameter that the plan and MindSpore shard differently."""
    planned = {part.name: part for part in slice_parameters(case, result.stage)}
    compiled = {parameter.name: parameter for parameter in select_model_parameters(result.parameters)}
    differences = [f"{name}: not planned on stage {result.stage}" for name in sorted(compiled.keys() - planned)]
    differences += [f"{name}: not compiled on stage {result.stage}" for name in sorted(planned.keys() - compiled)]
    for name in sorted(planned.keys() & compiled.keys()):
        plan, real = planned[name], compiled[name]
        for what, expected, found in (
            ("whole", plan.shape, real.shape),
            ("after tensor parallel", plan.tensor_shape, real.tensor_shape),
            ("stored", plan.stored_shape, real.stored_shape),
        ):
            if list(expected) != list(found):
                differences.append(f"{name}: {what} {list(expected)} planned, {list(found)} compiled")
    return differences
