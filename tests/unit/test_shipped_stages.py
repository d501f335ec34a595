"""The stages of configs/stages resolve on their cluster and fit, as documented in docs/long_context.md."""

from __future__ import annotations

import dataclasses
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ascend_cpt.config.train_stages import load_stages
from ascend_cpt.data.packed.manifest import Manifest, load_manifest
from ascend_cpt.plan.case import GIGABYTE
from ascend_cpt.plan.report import to_record
from ascend_cpt.run.launch.stages import StageOptions
from ascend_cpt.run.planning.plan_run import Cluster, plan_run
from ascend_cpt.train_stages import resolve_stages
from tests.unit.test_train_stages import write_dataset

REPOSITORY = Path(__file__).resolve().parents[2]
SIX_STAGES = "llama3_8b_8k_128k"
YARN = "qwen3_8b_32k_128k_yarn"
CLUSTER = Cluster(num_nodes=8, devices_per_node=8, device="910B", device_bytes=64 * GIGABYTE)
PACKED_256 = ("packed", "packed_new_tokens")
NEW_TOKENS = "qwen3_tiny_new_tokens"


@pytest.mark.parametrize(
    ("name", "num_workers", "lengths"),
    [
        ("qwen3_tiny_256_512", 2, {"256": 256, "512": 512}),
        (NEW_TOKENS, 2, {"rows": 256, "all": 256}),
        ("qwen3_8b_8k_32k", 64, {"8k": 8192, "32k": 32768}),
        (YARN, 64, {"32k": 32768, "128k": 131072}),
        (SIX_STAGES, 64, {f"{length}k": 1024 * length for length in (8, 16, 32, 64, 96, 128)}),
    ],
)
def test_the_shipped_stages_resolve(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, num_workers: int, lengths: dict[str, int]
) -> None:
    """All datasets are assumed to exist, packed with the row length in their folder's name."""

    def open_datasets(_config: object, _section: str, entries: dict[str, Any]) -> dict[str, Manifest]:
        made = {}
        for key, entry in entries.items():
            folder = Path(entry.path).parent.name
            length = re.fullmatch(r"packed_(\d+)(k?)", "packed_256" if folder in PACKED_256 else folder)
            assert length is not None
            manifest = load_manifest(write_dataset(tmp_path, int(length[1]) * (1024 if length[2] else 1)))
            shards = (dataclasses.replace(manifest.shards[0], num_rows=10**7),)
            made[key] = dataclasses.replace(manifest, shards=shards)
        return made

    monkeypatch.setattr("ascend_cpt.run.resolve.open_datasets", open_datasets)
    launch = ["64", "8", "10.0.0.1", "8118", "0"] if num_workers == 64 else ["2"]
    stages = resolve_stages(REPOSITORY / f"configs/stages/{name}.yaml", launch, StageOptions())
    assert {stage.name: stage.run.budget.seq_length for stage in stages} == lengths
    assert {stage.run.layout.world_size for stage in stages} == {num_workers}
    if name == NEW_TOKENS:
        assert [bool(stage.run.config.cpt.trainable) for stage in stages] == [True, False]
        return
    for before, after in pairwise(stages):
        assert before.advance_when is not None
        assert after.run.row_format.boundaries == ("ends" if num_workers == 64 else "mask")
        assert after.run.model["max_position_embeddings"] >= after.run.budget.seq_length
        if name not in (SIX_STAGES, YARN):
            assert before.run.model["rope_theta"] < after.run.model["rope_theta"]
    if name == YARN:
        before, after = (stage.run.model.get("rope_scaling") for stage in stages)
        # From the model card of Qwen3-8B.
        assert before is None
        assert after == {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
        assert not any("warning: cpt.seq_length" in note for stage in stages for note in stage.run.notes)
    if name == SIX_STAGES:
        assert [bool(stage.run.model.get("rope_scaling")) for stage in stages] == [False, *[True] * 5]
        assert [stage.advance_when is not None and stage.advance_when.needle for stage in stages] == [
            *[0.95] * 5,
            False,
        ]


def read_plan_rows() -> list[str]:
    """Return the rows that the table of the six stages in docs/long_context.md should have."""
    path = REPOSITORY / f"configs/stages/{SIX_STAGES}.yaml"
    rows = []
    for stage in load_stages(path):
        run, plan = plan_run(path.parent / stage.config, stage.set, CLUSTER)
        record = to_record(plan)
        assert record["fits"], stage.name
        layout, (part,) = run.layout, record["stages"]
        memory = (part["peak_bytes"] + part["reserve_bytes"]) / GIGABYTE
        rows.append(
            f"| {stage.name} | {layout.data_parallel} × {layout.tensor_parallel} × {layout.context_parallel} "
            f"| {run.config.cpt.global_batch_size} | {memory:.1f} | {record['time']['step_s']:.0f} "
            f"| {record['time']['tokens_per_s']:,.0f} | {(run.config.cpt.train_tokens or 0) // 10**9}B "
            f"| {record['days']:.1f} |"
        )
    return rows


def test_the_six_stages_fit_as_documented() -> None:
    guide = (REPOSITORY / "docs/long_context.md").read_text(encoding="utf-8")
    rows = read_plan_rows()
    assert len(rows) == 6 and "\n".join(rows) in guide, "\n".join(rows)


def test_the_stages_with_yarn_fit() -> None:
    path = REPOSITORY / f"configs/stages/{YARN}.yaml"
    plans = [plan_run(path.parent / stage.config, stage.set, CLUSTER)[1] for stage in load_stages(path)]
    assert [to_record(plan)["fits"] for plan in plans] == [True, True]
