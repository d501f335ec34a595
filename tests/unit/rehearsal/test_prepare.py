"""What a rehearsal runs on, and the configurations that it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from ascend_cpt.errors import ConfigError, CptError
from ascend_cpt.rehearsal.prepare import load_user_run, prepare, shrink_run
from ascend_cpt.rehearsal.weights import write_random_folder
from ascend_cpt.run.resolve import load_run
from ascend_cpt.weights.hf_folder import HfFolder
from tests.unit.rehearsal.test_weights import MODEL

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
QWEN3 = CONFIGS / "qwen3/cpt_qwen3_8b.yaml"


def test_both_runs_are_complete_and_start_from_the_same(tmp_path: Path) -> None:
    rehearsal, changes = shrink_run(load_user_run(QWEN3, {}), 8)
    assert "compute_dtype: bfloat16 -> float32, so that results can be compared with one device" in changes
    prepared = prepare(load_user_run(QWEN3, {}), rehearsal, tmp_path)
    HfFolder(prepared.start).check()
    for small, processes in ((prepared.parallel, 8), (prepared.one, 1)):
        assert small.num_processes == processes
        run = load_run(small.config, {}, world_size=processes)
        assert run.run_dir == small.run_dir
        assert run.config.cpt.init_from == str(prepared.start)
        assert run.model["compute_dtype"] == "float32"
        assert [dataset.name for dataset in run.validation] == ["domain", "general"]
    assert prepared.origins == dict.fromkeys(
        ["source domain", "validation domain", "validation general"], "random documents"
    )


def test_sources_keep_their_order(tmp_path: Path) -> None:
    overrides = {"cpt.sources": {"b": {"path": "/none/b"}, "a": {"path": "/none/a"}}}
    run = load_user_run(QWEN3, overrides)
    prepared = prepare(run, shrink_run(run, 8)[0], tmp_path)
    small = load_run(prepared.parallel.config, {}, world_size=8)
    assert [source.name for source in small.sources] == ["domain", "b", "a"]


def test_other_starts_are_replaced_by_a_folder() -> None:
    _, changes = shrink_run(load_user_run(QWEN3, {"cpt.init_from": "random"}), 8)
    assert any(change.startswith("start weights: random -> a Hugging Face folder") for change in changes)


@pytest.mark.parametrize(
    ("path", "overrides", "message"),
    [
        (CONFIGS / "none.yaml", {}, "no such configuration file"),
        (CONFIGS / "qwen3/cpt_qwen3_tiny.yaml", {}, "device_target is CPU, but a rehearsal is of a job on Ascend"),
        (QWEN3, {"cpt.sequence_length": 1}, "unknown key"),
        (QWEN3, {"parallel_config.pipeline_stage": 2}, "validation: needs pipeline_stage 1"),
    ],
)
def test_what_cannot_be_trained_is_refused(path: Path, overrides: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_user_run(path, overrides)


def test_start_weights_that_are_here_must_be_of_the_model(tmp_path: Path) -> None:
    write_random_folder(MODEL, tmp_path / "start", seed=1)
    with pytest.raises(CptError, match="is another model"):
        load_user_run(QWEN3, {"cpt.init_from": str(tmp_path / "start")})
