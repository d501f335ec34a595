"""A checkpoint without the optimizer state of a trained weight is refused."""

from __future__ import annotations

import pytest

from ascend_cpt.backend.checkpointing.complete_load import check_optimizer_state
from ascend_cpt.errors import CheckpointError

WEIGHTS = ["embedding.weight", "layers.0.bias"]
STATES = [f"{kind}.{name}" for kind in ("adam_m", "adam_v") for name in WEIGHTS]
OPTIMIZER = [*WEIGHTS, *STATES, *(f"accu_grads.{name}" for name in WEIGHTS), "global_step", "learning_rate.table"]


def test_all_states_are_there() -> None:
    check_optimizer_state(OPTIMIZER, WEIGHTS, {*WEIGHTS, *STATES})


@pytest.mark.parametrize("missing", [STATES[:1], STATES[-1:], STATES])
def test_missing_states_are_refused(missing: list[str]) -> None:
    with pytest.raises(
        CheckpointError, match=rf"no optimizer state for {len(missing)} of 4 entries, for example {missing[0]}"
    ):
        check_optimizer_state(OPTIMIZER, WEIGHTS, {*WEIGHTS, *STATES} - set(missing))


def test_frozen_weights_need_no_state() -> None:
    check_optimizer_state(OPTIMIZER, WEIGHTS[:1], {name for name in STATES if name.endswith(WEIGHTS[0])})
