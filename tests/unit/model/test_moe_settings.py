"""MindFormers' settings of a mixture of experts."""

from __future__ import annotations

from typing import Any

import pytest

from ascend_cpt.model.moe_settings import find_moe_problems, read_loss_weights

MODEL = {"model_type": "qwen3_moe"}


def test_dense_models_and_allowed_values_have_no_problems() -> None:
    assert find_moe_problems({"model_type": "qwen3", "moe_layer_freq": 2}) == []
    allowed = {"moe_grouped_gemm": True, "moe_aux_loss_coeff": 0.01, "moe_z_loss_coeff": 1e-3, "moe_layer_freq": None}
    assert find_moe_problems({**MODEL, **allowed}) == []


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"routed_scaling_factor": 1.5}, "set it to 1.0"),
        ({"moe_router_load_balancing_type": "seq_aux_loss"}, "set it to gbs_aux_loss"),
        ({"moe_expert_capacity_factor": 1.25}, "1.25 is not supported"),
        ({"num_moe_experts": 8}, "set num_experts"),
        ({"moe_z_loss_coeff": -1.0}, "must not be negative"),
    ],
)
def test_settings_that_compute_another_model_are_refused(setting: dict[str, Any], named: str) -> None:
    ((key, problem),) = find_moe_problems({**MODEL, **setting})
    assert key in setting and named in problem


def test_weights_of_the_routers_losses() -> None:
    assert read_loss_weights(MODEL) == (0.001, 0.0)
    assert read_loss_weights({**MODEL, "router_aux_loss_coef": 0.01}) == (0.01, 0.0)
    assert read_loss_weights({"router_aux_loss_coef": 0.01, "moe_aux_loss_coeff": 0.0, "moe_z_loss_coeff": 1e-3}) == (
        0.0,
        0.001,
    )
