"""A batch ramp: stages, tokens, phases and rows; the checks of its sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ascend_cpt.cluster.launch.coordination.records import read_outcome, write_outcome
from ascend_cpt.cluster.launch.coordination.restart_policy import CONTINUES, End, Outcome, RestartPolicy
from ascend_cpt.errors import ConfigError
from ascend_cpt.recipe.budget import BatchStage, BatchSteps, Budget
from ascend_cpt.recipe.phases import SampleOrder
from ascend_cpt.run.mindformers_yaml import compile_loader
from ascend_cpt.run.resolved_run import ResolvedRun
from tests.command_line import TrainCommand, train_command  # noqa: F401

ResolveRun = Callable[..., ResolvedRun]
ROW = 256
# 100 steps of 4 rows, 100 of 8, then 16.
RAMP: list[dict[str, Any]] = [{"until": 400 * ROW, "size": 4}, {"until": 1200 * ROW, "size": 8}, {"size": 16}]
BASES = ("atlas_a2_8x64g", "qwen3_8b")


def stages(*pairs: tuple[int, int]) -> tuple[BatchStage, ...]:
    return tuple(
        BatchStage(first_step=first, global_batch_size=size, micro_batch_size=1, num_accumulation_steps=size)
        for first, size in pairs
    )


def test_steps_tokens_and_phases(resolve_run: ResolveRun) -> None:
    phases = [
        {"name": "a", "tokens": 800 * ROW, "blend": {"web": 1}},
        {"name": "b", "blend": {"web": 1, "code": 1, "qa": 2}},
    ]
    schedule = {"peak_lr": 1e-4, "warmup_tokens": 480 * ROW}
    run = resolve_run(global_batch_size=RAMP, train_tokens=2800 * ROW, schedule=schedule, phases=phases)
    budget = run.budget
    assert [stage.first_step for stage in budget.ramp] == [0, 100, 200]
    assert (budget.total_steps, budget.total_tokens) == (300, 2800 * ROW)
    # 400 rows in 100 steps of 4, the rest in steps of 8.
    assert budget.warmup_steps == 110
    assert [phase.stop_step for phase in run.phases] == [150, 300]
    assert run.count_source_rows(0, 150) == {"web": 800, "code": 0, "qa": 0}
    assert run.count_source_rows(150, 300) == {"web": 500, "code": 500, "qa": 1000}
    assert [len(run.list_rows(step)) for step in (0, 99, 100, 199, 200)] == [4, 4, 8, 8, 16]
    assert [budget.count_tokens(step) // ROW for step in (0, 100, 150, 200, 300)] == [0, 400, 800, 1200, 2800]
    assert run.fingerprint()["global_batch_size"] == [[0, 4], [100, 8], [200, 16]]


def test_rows_are_those_of_the_order_whatever_the_stage(resolve_run: ResolveRun) -> None:
    run = resolve_run(global_batch_size=RAMP, train_tokens=2800 * ROW, phases=[{"name": "a", "upweight": {"qa": 3}}])
    listed = [row for step in range(300) for row in run.list_rows(step)]
    order = SampleOrder.from_record(run.order.to_record())
    sources, rows = order.locate(np.arange(2800))
    assert listed == [(list(order.num_rows)[s], int(r)) for s, r in zip(sources, rows, strict=True)]


def test_the_view_of_a_stage(resolve_run: ResolveRun) -> None:
    run = resolve_run(global_batch_size=RAMP, train_tokens=2800 * ROW, phases=[{"name": "a", "upweight": {"qa": 3}}])
    for step, size, end in ((0, 4, 100), (99, 4, 100), (100, 8, 200), (250, 16, 300)):
        view = run.at_step(step)
        assert (view.budget.global_batch_size, view.budget.micro_batch_size) == (size, size)
        assert view.budget.find_stage_end(step) == end
        assert view.row_format.micro_batch_size == size
        assert compile_loader(view)["ramp_step"] == step
        assert view.fingerprint() == run.fingerprint()
    whole = resolve_run()
    assert whole.at_step(5) is whole and "ramp_step" not in compile_loader(whole)
    assert "ramp" not in whole.order.to_record() and whole.budget.find_stage_end(3) == 1000


def test_steps_and_positions_are_inverse() -> None:
    budget = Budget(
        seq_length=2,
        global_batch_size=8,
        micro_batch_size=1,
        num_accumulation_steps=8,
        total_steps=9,
        ramp=stages((0, 2), (3, 4), (5, 8)),
    )
    steps = BatchSteps.of(budget.ramp)
    positions = [steps.first_position(step) for step in range(10)]
    assert positions == [0, 2, 4, 6, 10, 14, 22, 30, 38, 46]
    assert [steps.count_steps(rows) for rows in positions] == list(range(10))
    assert [steps.count_steps(rows + 1) for rows in positions] == list(range(10))
    assert budget.count_steps_within(2 * 8, first_step=2) == 4  # 2 rows and 4 of 6
    with pytest.raises(ValueError, match="15 tokens are less than 1 step of 16 tokens"):
        budget.count_steps_within(15, first_step=6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_batch_size": [{"size": 4}]}, "a ramp has at least two stages"),
        ({"global_batch_size": [{"size": 4}, {"size": 8}]}, "global_batch_size[0]: has no until; add it"),
        ({"global_batch_size": RAMP[:2]}, "global_batch_size[1]: the last stage lasts until the end of the run"),
        ({"global_batch_size": [RAMP[1], RAMP[0], RAMP[2]]}, "each until must be above the one before it"),
        ({"train_tokens": 1000 * ROW}, "global_batch_size[1].until: 307K tokens is not before the end of the run"),
        ({"global_batch_size": [{"until": 3 * ROW, "size": 4}, {"size": 8}]}, "has less than one step of 1024 tokens"),
        (
            {"schedule": {"peak_lr": 1e-4, "batch_scaling": {"base_tokens": 4096}}},
            "batch_scaling: not possible with a batch ramp",
        ),
    ],
)
def test_refused(resolve_run: ResolveRun, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_run(**{"global_batch_size": RAMP, "train_tokens": 2800 * ROW, **changes})
    assert message in str(caught.value)


def test_nvidias_ramp_by_the_command_line(train_command: TrainCommand) -> None:  # noqa: F811
    cpt: dict[str, Any] = {
        "init_from": "random",
        "seq_length": 4096,
        "global_batch_size": [{"until": "50B", "size": 384}, {"until": "100B", "size": 768}, {"size": 1152}],
        "train_tokens": "300B",
        "schedule": {"peak_lr": 4.5e-4, "final_lr": 4.5e-5},
        "sources": {"web": {"path": "/no/web"}},
    }
    layout = {"data_parallel": 64, "model_parallel": 2, "pipeline_stage": 1, "use_seq_parallel": True}
    path = train_command.write(cpt, *BASES, parallel_config=layout, runner_config={"batch_size": 1})
    code, out, err = train_command.dry_run(path)
    assert code == 0, err
    assert [line.partition(" = ")[0] for line in out.splitlines() if line.startswith("batch")] == [
        "batch    from step 0 (0): 384 rows × 4096 tokens",
        "batch    from step 31789 (50B): 768 rows × 4096 tokens",
        "batch    from step 47683 (100B): 1152 rows × 4096 tokens",
    ]
    assert "(1 row × 64 ranks × 18 accumulation)" in out and "(1 row × 64 ranks × 6 accumulation)" in out
    cpt["global_batch_size"] = [{"until": "50B", "size": 400}, {"size": 1152}]
    path = train_command.write(cpt, *BASES, parallel_config=layout, runner_config={"batch_size": 1})
    code, _, err = train_command.dry_run(path)
    assert code == 2 and "cpt.global_batch_size 400 is not divisible by data_parallel 64" in err
    path = train_command.write({**cpt, "global_batch_size": RAMP}, *BASES, parallel_config=layout)
    code, _, err = train_command.dry_run(path, "--set", "runner_config.batch_size=null")
    assert code == 2 and "a batch ramp changes the number of micro batches; set runner_config.batch_size" in err


def test_the_launcher_starts_the_job_again_without_a_limit() -> None:
    policy = RestartPolicy(0, 5.0)
    for step in (10, 20, 30):
        decision = policy.decide(Outcome(end=End.CONTINUES, code=0, step=step))
        assert (decision.again, decision.delay_s) == (True, 0.0)
        assert decision.message == f"the job continues after step {step}"
    assert not policy.decide(Outcome(end=End.DONE, code=0, step=40)).again
    assert read_outcome(write_outcome(CONTINUES)) == CONTINUES
