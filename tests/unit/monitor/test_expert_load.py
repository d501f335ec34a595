"""The records of the experts' loads, and the guard against overloaded experts."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from ascend_cpt.monitor.experts.load import count_tokens, find_overload, format_experts, make_record
from ascend_cpt.monitor.record import parse_record, to_scalars, to_values

# Two layers of four experts; sums of three micro batches, then balance loss and z-loss.
BALANCED = [0.75, 0.75, 0.75, 0.75, 3.0, 6.0]
UNEVEN = [1.5, 1.5, 0.0, 0.0, 6.0, 12.0]
RECORD = make_record(np.array([BALANCED, UNEVEN]), step=20, num_steps=3)


def test_losses_and_loads_are_means_over_micro_batches() -> None:
    assert (RECORD.balance_loss, RECORD.z_loss) == pytest.approx((1.5, 3.0))
    assert RECORD.layer_entropy == pytest.approx([1.0, math.log(2) / math.log(4)])
    assert RECORD.entropy == pytest.approx(0.75)
    assert RECORD.layer_max_load == pytest.approx([1.0, 2.0])
    assert (RECORD.max_load, RECORD.max_load_layer, RECORD.max_load_expert) == (2.0, 1, 0)
    assert RECORD.num_unused == 2


def test_tokens_of_every_expert() -> None:
    assert count_tokens(np.array([BALANCED, UNEVEN]), 800) == [[200, 200, 200, 200], [400, 400, 0, 0]]


def test_the_guard_names_the_overloaded_expert() -> None:
    assert find_overload(RECORD, None) == "" and find_overload(RECORD, 2.0) == ""
    assert find_overload(RECORD, 1.9) == (
        "expert 0 of layer 1 processed 2.00 times the mean number of tokens in the last 3 steps, more than "
        "cpt.guards.max_expert_load 1.9"
    )


def test_the_record_is_read_back_plotted_and_printed() -> None:
    values = parse_record(json.dumps(to_values(RECORD)).encode())
    assert values["kind"] == "experts" and values["max_load"] == 2.0
    assert to_scalars(RECORD)["experts/entropy"] == RECORD.entropy
    assert format_experts(RECORD) == (
        "experts at step 20: balance loss 1.5000, z-loss 3, load entropy 0.7500, largest load 2.00 × the mean "
        "(layer 1, expert 0), 2 unused"
    )
