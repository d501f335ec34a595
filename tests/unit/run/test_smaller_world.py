"""A run on fewer nodes than it was started on: the global batch stays the same, or the run does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ascend_cpt.cluster.job.job_nodes import JOB_NODES_VARIABLE, JobNodes, read_fitting, read_job_nodes
from ascend_cpt.config.loader import RunConfig, load_config, parse_assignments
from ascend_cpt.data.packed.manifest import Manifest
from ascend_cpt.errors import ConfigError
from ascend_cpt.monitor.goodput.nodes import describe_node_changes
from ascend_cpt.monitor.record import parse_record, to_scalars, to_values
from ascend_cpt.run.launch.command_line import Process, read_process
from ascend_cpt.run.launch.lost_nodes import check_lost_nodes, describe_nodes, record_nodes
from ascend_cpt.run.recipe.smaller_world import keep_global_batch
from ascend_cpt.run.resolve import resolve
from ascend_cpt.run.resolved_run import ResolvedRun

REPOSITORY = Path(__file__).resolve().parents[3]
BIG = REPOSITORY / "tests/even_layouts/cpt_llama3_70b.yaml"
SMALL = REPOSITORY / "configs/qwen3/cpt_qwen3_tiny.yaml"
SIZES = [
    "parallel_config.model_parallel=8",
    "parallel_config.pipeline_stage=1",
    "parallel_config.context_parallel=1",
    "parallel_config.data_parallel=null",
]
MakeManifest = Callable[..., Manifest]


def load(path: Path, *assignments: str) -> RunConfig:
    return load_config(path, parse_assignments(["cpt.validation=null", *assignments]))


def load_big(*assignments: str) -> RunConfig:
    return load(BIG, *SIZES, *assignments)


def resolve_on(make_manifest: MakeManifest, config: RunConfig, size: int, full: int) -> ResolvedRun:
    vocab_size = config.mindformers["model"]["model_config"]["vocab_size"]
    manifest = make_manifest(num_rows=10**7, seq_length=config.cpt.seq_length, vocab_size=vocab_size)
    smaller = keep_global_batch(config, world_size=size, full_world_size=full)
    return resolve(smaller, world_size=size, sources=dict.fromkeys(config.cpt.sources, manifest))


def split(run: ResolvedRun) -> tuple[int, int, int, int]:
    budget = run.budget
    return (
        budget.global_batch_size,
        run.layout.data_parallel,
        budget.micro_batch_size,
        budget.num_accumulation_steps,
    )


@pytest.mark.parametrize(
    ("assignments", "size", "expected"),
    [
        # Twice the micro batches on half the devices.
        (["cpt.global_batch_size=64", "runner_config.batch_size=2"], 32, (64, 4, 2, 8)),
        (["cpt.global_batch_size=64", "runner_config.batch_size=2"], 64, (64, 8, 2, 4)),
        # Keys that name the full size are for the full size.
        (
            [
                "cpt.global_batch_size=64",
                "runner_config.batch_size=2",
                "runner_config.gradient_accumulation_steps=4",
                "parallel_config.data_parallel=8",
            ],
            32,
            (64, 4, 2, 8),
        ),
        # Without cpt.global_batch_size, the batch is that of all devices.
        (
            ["cpt.global_batch_size=null", "runner_config.batch_size=2", "runner_config.gradient_accumulation_steps=4"],
            32,
            (64, 4, 2, 8),
        ),
        # 16 rows per rank instead of 12: a micro batch of at most 6 rows.
        (["cpt.global_batch_size=48", "runner_config.batch_size=6"], 24, (48, 3, 4, 4)),
        # One micro batch on all devices.
        (["cpt.global_batch_size=64", "runner_config.batch_size=null"], 32, (64, 4, 8, 2)),
    ],
)
def test_the_number_of_micro_batches_rises(
    make_manifest: MakeManifest, assignments: list[str], size: int, expected: tuple[int, int, int, int]
) -> None:
    config = load_big(*assignments)
    run = resolve_on(make_manifest, config, size, full=64)
    assert split(run) == expected
    full = resolve_on(make_manifest, config, 64, full=64)
    assert run.fingerprint() == full.fingerprint()
    assert run.list_rows(3) == full.list_rows(3)


def test_pipeline_stages_keep_their_micro_batches(make_manifest: MakeManifest) -> None:
    config = load_big(
        "parallel_config.pipeline_stage=4",
        "parallel_config.micro_batch_num=8",
        "cpt.global_batch_size=64",
        "runner_config.batch_size=4",
    )
    assert split(resolve_on(make_manifest, config, 64, full=64)) == (64, 2, 4, 8)
    assert split(resolve_on(make_manifest, config, 32, full=64)) == (64, 1, 4, 16)


def test_a_batch_ramp_keeps_all_its_sizes(make_manifest: MakeManifest) -> None:
    ramp = "cpt.global_batch_size=[{size: 32, until: 1B}, {size: 96}]"
    config = load_big(ramp, "runner_config.batch_size=4", "cpt.schedule.batch_scaling=null")
    run = resolve_on(make_manifest, config, 32, full=64)
    assert [stage.global_batch_size for stage in run.budget.ramp] == [32, 96]
    assert [stage.num_accumulation_steps for stage in run.budget.ramp] == [2, 6]
    assert run.fingerprint() == resolve_on(make_manifest, config, 64, full=64).fingerprint()


def test_a_cpu_run_has_more_rows_per_micro_batch(make_manifest: MakeManifest) -> None:
    config = load(SMALL, "cpt.global_batch_size=8")
    assert split(resolve_on(make_manifest, config, 4, full=4)) == (8, 4, 2, 1)
    assert split(resolve_on(make_manifest, config, 1, full=4)) == (8, 1, 8, 1)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (40, "global_batch_size 64 is not divisible by data_parallel 5"),
        (4, "= 8 does not divide the number of devices"),
    ],
)
def test_what_does_not_fit_is_explained(make_manifest: MakeManifest, size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_on(make_manifest, load_big("cpt.global_batch_size=64", "runner_config.batch_size=2"), size, full=64)


def make_nodes(tmp_path: Path, *, smaller: tuple[int, ...] = (), **changes: Any) -> JobNodes:
    values = {
        "attempt": 2,
        "hosts": ("a", "c"),
        "num_nodes": 8,
        "num_workers": 64,
        "smaller": smaller,
        "reason": "node 1 (b) was lost",
        "fitting_file": str(tmp_path / "fitting"),
        **changes,
    }
    return JobNodes(**values)


def test_the_fitting_sizes_are_recorded_for_the_launcher(make_manifest: MakeManifest, tmp_path: Path) -> None:
    config = load_big("cpt.global_batch_size=64", "runner_config.batch_size=2")
    run = resolve_on(make_manifest, config, 64, full=64)
    nodes = make_nodes(tmp_path, smaller=tuple(range(16, 64, 8)))
    check_lost_nodes(run, config, nodes, writes=False)
    assert read_fitting(tmp_path / "fitting") is None
    check_lost_nodes(run, config, nodes, writes=True)
    assert read_fitting(tmp_path / "fitting") == {16, 32}
    with pytest.raises(ConfigError, match="--min-nodes 5: the run does not fit on fewer nodes; with 56"):
        check_lost_nodes(run, config, make_nodes(tmp_path, smaller=(40, 48, 56)), writes=True)
    check_lost_nodes(run, config, make_nodes(tmp_path), writes=True)
    assert read_fitting(tmp_path / "fitting") == set()


def test_shared_storage_is_needed(make_manifest: MakeManifest, tmp_path: Path) -> None:
    config = load_big("cpt.global_batch_size=64", "runner_config.batch_size=2", "cpt.storage.shared=false")
    run = resolve_on(make_manifest, config, 64, full=64)
    with pytest.raises(ConfigError, match=r"command line: cpt.storage.shared is false: --spare-nodes and --min-nodes"):
        check_lost_nodes(run, config, make_nodes(tmp_path), writes=False)


def test_the_nodes_are_recorded(make_manifest: MakeManifest, tmp_path: Path) -> None:
    config = load_big("cpt.global_batch_size=64", "runner_config.batch_size=2")
    run = resolve_on(make_manifest, config, 16, full=64)
    nodes = make_nodes(tmp_path)
    assert describe_nodes(nodes) == ["nodes    attempt 2 on 2 of 8: a, c (node 1 (b) was lost)"]
    assert describe_nodes(None) == []
    record = record_nodes(run, nodes, 40)
    assert record
    values = to_values(record)
    assert parse_record(json.dumps(values).encode()) == values
    assert list(values)[:2] == ["kind", "step"]
    assert to_scalars(record) == {"nodes/nodes": 2, "nodes/devices": 16}
    assert describe_node_changes([{**values, "reason": ""}, values]) == (
        "step 40: node 1 (b) was lost (16 devices, 2 rows × 16 per data-parallel rank)"
    )
    assert record_nodes(run, None, 40) is None


def test_a_process_reads_the_nodes_of_its_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = make_nodes(tmp_path, hosts=("a",), num_nodes=2, num_workers=2)
    assert read_job_nodes({JOB_NODES_VARIABLE: nodes.to_text()}) == nodes
    assert read_job_nodes({}) is None
    # The worker that is left has no scheduler.
    for name, value in {"RANK_ID": "0", "RANK_SIZE": "1", JOB_NODES_VARIABLE: nodes.to_text()}.items():
        monkeypatch.setenv(name, value)
    process = read_process()
    assert process == Process(rank=0, world_size=1, launched=True, nodes=nodes)
    assert process.full_world_size == 2
