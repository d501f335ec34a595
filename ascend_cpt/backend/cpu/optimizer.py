"""MindFormers' AdamW update on a CPU, with MindSpore's fused Adam kernel.

MindFormers' update of each weight consists of about 15 operators, each of which reads and writes whole tensors. The
fused kernel computes w -= lr * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + epsilon). With epsilon * sqrt(1 -
beta2^t) in place of epsilon, this is MindFormers' formula. The weight decay is applied first.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindformers.core.optim import adamw
from mindspore import Tensor, ops

adam = ops.Adam()
update_in_parts = adamw._update_run_op
adamw_update = ops.MultitypeFuncGraph("adamw_update")


@adamw_update.register(*["Tensor"] * 10, "Bool")
def _update(
    beta1: Tensor,
    beta2: Tensor,
    epsilon: Tensor,
    step: Tensor,
    learning_rate: Tensor,
    weight_decay: Tensor,
    weight: Any,
    gradient: Tensor,
    first_moment: Any,
    second_moment: Any,
    is_updated: bool,
) -> Tensor:
    """Update one weight and its moments. Weights that are not float32 are updated by MindFormers' operators."""
    if not is_updated or ops.dtype(weight) != ms.float32:
        return update_in_parts(
            beta1, beta2, epsilon, step, learning_rate, weight_decay, weight, gradient, first_moment, second_moment,
            is_updated,
        )  # fmt: skip
    power1, power2 = ops.pow(beta1, step), ops.pow(beta2, step)
    decayed = ops.assign(weight, weight * (1 - learning_rate * weight_decay))
    gradient = ops.depend(ops.cast(gradient, ms.float32), decayed)
    updated = adam(
        weight, first_moment, second_moment, power1, power2, learning_rate, beta1, beta2,
        epsilon * ops.sqrt(1 - power2), gradient,
    )  # fmt: skip
    return updated[0]
