"""Compiling for a cluster with an installed CANN, using its simulation instead of stubs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ascend_cpt.plan.case import GIGABYTE
from ascend_cpt.plan.memory import estimate_memory
from ascend_cpt.run.planning.assumed_run import resolve_without_data
from ascend_cpt.run.planning.plan_run import Cluster, plan_run
from ascend_cpt.run.planning.training_case import build_case
from ascend_cpt.simulate.compare_slices import find_differences
from ascend_cpt.simulate.compile_ranks import load_shortened
from ascend_cpt.simulate.run_rank import simulate_rank
from ascend_cpt.softnpu.environment import find_cann

REPOSITORY = Path(__file__).resolve().parents[2]
CLUSTER = Cluster(num_nodes=None, devices_per_node=8, device="910B", device_bytes=64 * GIGABYTE)


@pytest.mark.npu
@pytest.mark.timeout(1800)
def test_a_rank_compiles_as_planned_with_cann() -> None:
    if find_cann(os.environ) is None:
        pytest.skip("no CANN: ASCEND_HOME_PATH is not set")
    run, _ = plan_run(REPOSITORY / "configs/qwen3/cpt_qwen3_8b.yaml", {}, CLUSTER)
    resolved = resolve_without_data(load_shortened(run, {}, layers_per_stage=2, micro_batches=2), run.layout.world_size)
    case = build_case(resolved)
    result = simulate_rank(resolved, 0, num_steps=1, timeout_s=1500, report=print)
    assert not result.error
    assert find_differences(case, result) == []
    # The peak includes operator workspaces, which the plan does not count.
    assert result.peak_bytes > 0.9 * estimate_memory(case)[0].peak_bytes
