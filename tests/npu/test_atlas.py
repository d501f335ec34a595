"""Tests that need a node of eight NPUs: scripts/ci_atlas.sh runs them on the sample corpus."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ascend_cpt.config.loader import load_config
from ascend_cpt.rehearsal.emulated_job import find_port
from ascend_cpt.rehearsal.weights import write_random_folder
from ascend_cpt.softnpu.environment import is_requested
from tests.npu.cases import CASES, NUM_DEVICES, NUM_STEPS, REPO_ROOT, Case, build_command, write_config

DATASET = REPO_ROOT / "data/sample/packed/general_train_text_document"
QWEN3 = Case(family="qwen3", layout="dp2_tp2_pp2")

# ASCEND_CPT_SOFTNPU=1 runs these tests on emulated NPUs, which takes several minutes for each.
EMULATED = is_requested(os.environ)
num_devices = NUM_DEVICES if EMULATED else len(list(Path("/dev").glob("davinci[0-9]*")))
pytestmark = [
    pytest.mark.npu,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(num_devices < NUM_DEVICES, reason=f"{NUM_DEVICES} NPUs needed, {num_devices} here"),
    pytest.mark.skipif(not list(DATASET.parent.glob("*")), reason="no sample data: bash scripts/prepare_sample.sh"),
]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "ASCEND_CPT_PYTHON": sys.executable}
    result = subprocess.run(command, cwd=REPO_ROOT, env=environ, text=True, capture_output=True, check=False)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return result


def train(config: Path, *arguments: str) -> None:
    # Another job of this machine may use the default port and log folder.
    run(*build_command(config, *arguments), str(find_port()), str(config.parent / "log"), "False", "7200")


def prepare(case: Case, folder: Path, **changes: Any) -> Path:
    return write_config(case, dataset=DATASET, seq_length=256, vocab_size=4096, folder=folder, **changes)


def read_losses(folder: Path, case: Case, kind: str = "step") -> dict[int, float]:
    lines = (folder / "output" / case.name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return {record["step"]: record["loss"] for record in records if record["kind"] == kind}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_loss_falls(case: Case, tmp_path: Path) -> None:
    train(prepare(case, tmp_path))
    losses = read_losses(tmp_path, case)
    assert sorted(losses) == list(range(1, NUM_STEPS + 1))
    assert losses[NUM_STEPS] < 0.9 * losses[1]


def test_layouts_agree(tmp_path: Path) -> None:
    first_losses = []
    for case in (Case(family="qwen3", layout="dp8"), QWEN3):
        train(prepare(case, tmp_path / case.layout), "--stop-at-step", "3")
        first_losses.append(read_losses(tmp_path / case.layout, case))
    # Initial weights differ between layouts, so only the scale of the first loss, ln(vocabulary), is comparable.
    assert first_losses[0][1] == pytest.approx(first_losses[1][1], rel=0.05)


def test_a_resumed_run_has_the_same_losses(tmp_path: Path) -> None:
    for name, stops in (("whole", ()), ("parts", ("--stop-at-step", "10"))):
        train(prepare(QWEN3, tmp_path / name), *stops)
    train(tmp_path / "parts" / f"{QWEN3.name}.yaml")
    whole, parts = (read_losses(tmp_path / name, QWEN3) for name in ("whole", "parts"))
    assert whole == pytest.approx(parts, rel=1e-3)


def test_the_export_of_a_sharded_run_is_verified(tmp_path: Path) -> None:
    train(prepare(QWEN3, tmp_path))
    tool, trained = "tools/convert_weights.py", str(tmp_path / "output" / QWEN3.name)
    run(sys.executable, tool, "to-hf", trained, str(tmp_path / "hf"), "--like", "data/sample/tokenizer")
    run(sys.executable, tool, "verify", str(tmp_path / "hf"), "--against", trained)


def test_start_from_hugging_face_with_validation_in_two_layouts(tmp_path: Path) -> None:
    """The path of every real run: weights of a Hugging Face folder, held-out loss before step 1, accumulation."""
    cases = (Case(family="qwen3", layout="dp8"), Case(family="qwen3", layout="dp4_tp2"))
    model = load_config(prepare(cases[0], tmp_path)).mindformers["model"]["model_config"]
    write_random_folder({**model, "initializer_range": 0.06}, tmp_path / "hf", seed=1)
    validation = {"every": "2 steps", "max_rows": 32, "sets": {"held": {"path": str(DATASET)}}}
    for case in cases:
        folder = tmp_path / case.layout
        config = prepare(case, folder, init_from=str(tmp_path / "hf"), validation=validation)
        train(config, "--stop-at-step", "4")
        assert sorted(read_losses(folder, case, "validation")) == [0, 2, 4]
    for kind in ("step", "validation"):
        first, second = (read_losses(tmp_path / case.layout, case, kind) for case in cases)
        # The same weights, computed in bfloat16.
        assert first == pytest.approx(second, rel=5e-3)


@pytest.mark.skipif(EMULATED, reason="no NPU here: the software NPU")
def test_the_doctor_finds_no_error() -> None:
    run(sys.executable, "tools/doctor.py")
