"""Continuing a run in another parallel layout: refused without --reshard, with the sizes; noted with it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ascend_cpt.checkpoint.locate import check_checkpoint
from ascend_cpt.checkpoint.state import RunState, read_state, write_state
from ascend_cpt.config.parallel_layout import ParallelLayout
from ascend_cpt.errors import CheckpointError
from ascend_cpt.run.layout_change import check_common_step, check_layout
from ascend_cpt.run.resolved_run import ResolvedRun
from ascend_cpt.run.starting_point import choose_start
from ascend_cpt.run.verified import ALONE

ResolveRun = Callable[..., ResolvedRun]
SHARDED = {"enable_parallel_optimizer": True, "parallel_optimizer_config": {"parallel_optimizer_threshold": 0}}


def place(
    run: ResolvedRun,
    run_dir: Path,
    *,
    target: str = "Ascend",
    offset: Any = 0,
    parallel: Mapping[str, Any] = SHARDED,
    **sizes: int,
) -> ResolvedRun:
    """Return the run in a folder and in a layout. Sizes are 1 unless they are given."""
    experts = sizes.pop("experts", 1)
    sizes = {f"{name}_parallel": sizes.get(name, 1) for name in ("data", "tensor", "pipeline", "context")}
    layout = ParallelLayout(world_size=math.prod(sizes.values()), expert_parallel=experts, **sizes)
    sections = {
        **run.config.mindformers,
        "context": {"device_target": target},
        "parallel": dict(parallel),
        "model": {"model_config": {**run.model, "offset": offset}},
    }
    config = dataclasses.replace(run.config, mindformers=sections)
    return dataclasses.replace(run, run_dir=run_dir, layout=layout, config=config)


def save(run: ResolvedRun, step: int, *, ranks: list[int] | None = None) -> Path:
    """Write a checkpoint of the run at a step, with the empty files of `ranks` (default: all)."""
    folder = run.checkpoint_root / f"iteration_{step:08d}"
    folder.mkdir(parents=True)
    size = run.layout.world_size
    names = [f"cpt-model-{rank:07d}-{size:07d}.safetensors" for rank in (range(size) if ranks is None else ranks)]
    for name in names:
        (folder / name).touch()
    state = RunState(
        step=step,
        total_steps=run.budget.total_steps,
        tokens=step,
        position=step,
        fingerprint=run.fingerprint(),
        files=dict.fromkeys(names, 0),
        layout=run.describe_layout(),
    )
    write_state(folder, state)
    return folder


CHANGES = [
    pytest.param(
        {"data": 2, "tensor": 2},
        {"tensor": 4},
        "data_parallel: 2 → 1; model_parallel: 2 → 4",
        id="tensor instead of data",
    ),
    pytest.param({"tensor": 4}, {"pipeline": 2}, "model_parallel: 4 → 1; pipeline_stage: 1 → 2", id="stages"),
    pytest.param({"data": 2}, {"context": 2}, "context_parallel: 1 → 2; data_parallel: 2 → 1", id="context"),
    pytest.param({"data": 2}, {"data": 2, "experts": 2}, "expert_parallel: 1 → 2", id="experts"),
    pytest.param(
        {"pipeline": 2, "offset": 0},
        {"pipeline": 2, "offset": [1, -1]},
        "stage_layers: [1, 1] → [2, 0]",
        id="layers of stages",
    ),
    pytest.param(
        {"data": 2},
        {"data": 2, "parallel": {**SHARDED, "enable_parallel_optimizer": False}},
        "optimizer_sharding: '2 ranks from 0 KB' → 'off'",
        id="optimizer not sharded",
    ),
]


@pytest.mark.parametrize(("before", "after", "what"), CHANGES)
def test_another_layout_needs_the_flag(
    resolve_run: ResolveRun, tmp_path: Path, before: dict[str, Any], after: dict[str, Any], what: str
) -> None:
    run = resolve_run()
    folder = save(place(run, tmp_path / "run", **before), 300)
    changed = place(run, tmp_path / "run", **after)
    with pytest.raises(CheckpointError) as caught:
        choose_start(changed, None)
    assert str(caught.value) == (
        f"{folder}: saved with another parallel layout ({what}); use that layout, or pass --reshard to continue with "
        "the new one (the losses are the same up to rounding)"
    )
    start = choose_start(changed, None, reshard=True)
    assert (start.step, start.notes) == (300, (f"new parallel layout from step 300 on: {what}",))
    (note,) = choose_start(changed, None, dry=True).notes
    assert note == f"step 300 was saved with another parallel layout ({what}); pass --reshard to continue from it"
    assert choose_start(changed, None, dry=True, reshard=True).notes == start.notes


@pytest.mark.parametrize("reshard", [False, True])
def test_the_flag_changes_nothing_in_the_same_layout(resolve_run: ResolveRun, tmp_path: Path, reshard: bool) -> None:
    run = place(resolve_run(), tmp_path / "run", data=2, tensor=2)
    assert choose_start(run, None, reshard=reshard).step == 0, "before the first checkpoint"
    save(run, 300)
    assert (choose_start(run, None, reshard=reshard).step, choose_start(run, None, reshard=reshard).notes) == (300, ())
    # Neither do settings that move no slice.
    for same in ({"offset": [0]}, {"parallel": {**SHARDED, "gradients_mean": True}}):
        assert choose_start(place(run, run.run_dir, data=2, tensor=2, **same), None).notes == ()


def test_everything_else_is_still_refused(resolve_run: ResolveRun, tmp_path: Path) -> None:
    save(place(resolve_run(), tmp_path / "run", data=2), 300)
    for other in (resolve_run(train_tokens=900 * 8 * 256), resolve_run(global_batch_size=16)):
        with pytest.raises(CheckpointError, match="saved by a run with different settings"):
            choose_start(place(other, tmp_path / "run", data=1), None, reshard=True)


def test_a_longer_run_in_another_layout_needs_both_flags(resolve_run: ResolveRun, tmp_path: Path) -> None:
    settings = {"schedule": {"kind": "constant", "peak_lr": 1e-3}}
    save(place(resolve_run(**settings), tmp_path / "run", data=2), 300)
    longer = place(resolve_run(train_tokens=2000 * 8 * 256, **settings), tmp_path / "run")
    with pytest.raises(CheckpointError, match="pass --reshard"):
        choose_start(longer, None, extend=True)
    notes = choose_start(longer, None, extend=True, reshard=True).notes
    assert notes[0].startswith("extended at step 300") and notes[-1].endswith("data_parallel: 2 → 1")


def test_a_complete_run_loads_nothing(resolve_run: ResolveRun, tmp_path: Path) -> None:
    save(place(resolve_run(), tmp_path / "run", data=2), 1000)
    assert choose_start(place(resolve_run(), tmp_path / "run"), None).notes == ()


def test_checkpoints_of_earlier_versions_are_compared_by_their_files(resolve_run: ResolveRun, tmp_path: Path) -> None:
    run = place(resolve_run(), tmp_path / "run", data=2, tensor=2)
    folder = save(run, 300)
    write_state(folder, dataclasses.replace(read_state(folder), layout={}))
    assert choose_start(run, None).notes == ()
    with pytest.raises(CheckpointError, match=r"another parallel layout \(devices: 4 → 2\)"):
        choose_start(place(run, run.run_dir, tensor=2), None)
    # On a CPU one process saves for all.
    assert choose_start(place(run, run.run_dir, target="CPU", data=2), None).notes == ()


@pytest.mark.parametrize("reshard", [False, True])
def test_on_a_cpu_the_number_of_processes_may_change(resolve_run: ResolveRun, tmp_path: Path, reshard: bool) -> None:
    run = place(resolve_run(), tmp_path / "run", target="CPU", data=2)
    folder = save(run, 300)
    state = read_state(folder)
    (folder / "cpt-model-0000000-0000001.safetensors").touch()
    write_state(folder, dataclasses.replace(state, files={"cpt-model-0000000-0000001.safetensors": 0}))
    start = choose_start(place(run, run.run_dir, target="CPU"), None, reshard=reshard)
    assert start.notes == ("new parallel layout from step 300 on: data_parallel: 2 → 1",)


def test_without_shared_storage_every_node_needs_all_files(resolve_run: ResolveRun, tmp_path: Path) -> None:
    run = place(resolve_run(), tmp_path / "run", data=2, tensor=2)
    other = place(run, run.run_dir, tensor=2)
    whole = check_checkpoint(save(run, 300))
    assert len(check_layout(other, whole, reshard=True, shared=False)) == 1, "a gathered folder"
    part = check_checkpoint(save(run, 400, ranks=[0, 1]))
    with pytest.raises(
        CheckpointError, match=r"rank 2 are not on this node; .* tools/gather_checkpoint\.py, copy"
    ) as caught:
        check_layout(other, part, reshard=True, shared=False)
    assert str(part.folder) in str(caught.value)
    assert len(check_layout(other, part, reshard=True)) == 1


def test_a_node_without_the_step_does_not_start_the_run_again(resolve_run: ResolveRun, tmp_path: Path) -> None:
    run = place(resolve_run(), tmp_path / "run", data=2)
    check_common_step(run, ALONE)
    save(run, 300)
    with pytest.raises(CheckpointError, match="--reshard: step 300 is not complete on every node; without shared"):
        check_common_step(run, ALONE)


@pytest.mark.parametrize("experts", [1, 2])
def test_a_layout_that_was_recorded_without_expert_parallel_has_a_size_of_1(
    resolve_run: ResolveRun, tmp_path: Path, experts: int
) -> None:
    folder = save(place(resolve_run(), tmp_path / "run", data=2), 300)
    state = read_state(folder)
    layout = {key: value for key, value in state.layout.items() if key != "expert_parallel"}
    assert layout != state.layout
    write_state(folder, dataclasses.replace(state, layout=layout))
    run = place(resolve_run(), tmp_path / "run", data=2, experts=experts)
    if experts == 1:
        assert choose_start(run, None).notes == ()
    else:
        with pytest.raises(CheckpointError, match=r"another parallel layout \(expert_parallel: 1 → 2\)"):
            choose_start(run, None)
