"""Validation with pipeline stages: the losses are those of one device, and training is not changed by it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ascend_cpt.data.packed.checksum import checksum_file
from ascend_cpt.rehearsal.emulated_job import EmulatedJob
from ascend_cpt.weights.mindformers_folder import METADATA_NAME
from tests.emulation import needs_emulation
from tests.integration.conftest import TASKS, read_history, run_command
from tests.integration.softnpu.layouts import LAYOUTS, SHORT_ROWS, Layout, Reference
from tests.integration.softnpu.trial import TIMEOUT_S, CpuRun, check, describe_layout, describe_run

pytestmark = needs_emulation
NUM_STEPS = 2
ROWS = [
    pytest.param("pipeline 2"),
    pytest.param("data 2, tensor 2, pipeline 2", marks=pytest.mark.slow),
    pytest.param("data 2, pipeline 2, rows 2", marks=pytest.mark.slow),
]
# Two rows in a micro batch of each rank.
OTHER_LAYOUTS = {"data 2, pipeline 2, rows 2": Layout(data=2, pipeline=2, accumulation=2)}


def read_scores(run: Path) -> dict[tuple[int, str], dict[str, float]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {(r["step"], r["name"]): r["values"] for r in map(json.loads, lines) if r["kind"] == "task"}


def read_records(run: Path, kind: str) -> list[Any]:
    return [record for record in read_history(run) if record[0] == kind]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ROWS)
def test_losses_are_those_of_one_device_and_training_is_unchanged(
    name: str,
    get_reference: Callable[[Reference], CpuRun],
    get_dataset: Callable[[int], Path],
    packed: Path,
    tokenizer: Path,
    tmp_path: Path,
) -> None:
    layout = (LAYOUTS | OTHER_LAYOUTS)[name]
    cpu, dataset = get_reference(layout.reference), get_dataset(SHORT_ROWS)
    # 100 rows are no multiple of the 8 in a call, and two of them are padded: micro batches have different numbers of
    # labels.
    validation = {
        "every": "2 steps",
        "sets": {"held": {"path": str(dataset)}, "padded": {"path": str(packed)}},
        "tokenizer": str(tokenizer),
        "tasks": {
            "choices": {"path": str(TASKS / "plain_choices.jsonl"), "kind": "multiple_choice", "max_items": 4},
            "answers": {"path": str(TASKS / "plain_answers.jsonl"), "kind": "answer_bits", "max_items": 4},
        },
    }

    saving = {"every": f"{NUM_STEPS} steps"}  # the first save follows a validation

    def train(folder: Path, chosen: dict[str, Any] | None) -> Path:
        config = describe_layout(layout, dataset, folder, cpu.start, validation=chosen, checkpoint=saving)
        job = EmulatedJob(config, folder, workers=layout.workers, timeout_s=TIMEOUT_S)
        job.start("--stop-at-step", str(NUM_STEPS))
        job.expect_success()
        return job.list_run_dirs("run")[0]

    validated, plain = train(tmp_path / "validated", validation), train(tmp_path / "plain", None)
    assert read_records(validated, "step") == read_records(plain, "step")
    folder = Path("checkpoint") / f"iteration_{NUM_STEPS:08d}"
    files = sorted(path.name for path in (plain / folder).glob("*.safetensors"))
    assert len(files) == 2 * layout.workers, "weights and optimizer of every rank"
    for file in files:
        assert checksum_file(validated / folder / file) == checksum_file(plain / folder / file), file
    # The layouts in metadata.json are those of the training graph; the scoring graph has no optimizer state.
    metadata, plain_metadata = (json.loads((run / folder / METADATA_NAME).read_text()) for run in (validated, plain))
    assert any(name.startswith("adam_m.") for name in plain_metadata["state_dict_metadata"])
    assert metadata == plain_metadata

    (tmp_path / "cpu").mkdir()
    config = describe_run(dataset, tmp_path / "cpu", layout.reference, init_from=str(cpu.start), validation=validation)
    check(run_command([sys.executable, "run_cpt.py", "--config", str(config), "--stop-at-step", str(NUM_STEPS)]))
    expected, found = (read_records(run, "validation") for run in (tmp_path / "cpu/output/run", validated))
    assert [record[:2] for record in found] == [record[:2] for record in expected]
    assert len(found) == 2 * 2
    differences = [abs(have[2] - want[2]) for have, want in zip(found, expected, strict=True)]
    print("validation losses: largest difference from one device:", f"{max(differences):.1e}")
    assert max(differences) < 1e-4
    scores, expected_scores = read_scores(validated), read_scores(tmp_path / "cpu/output/run")
    assert scores.keys() == expected_scores.keys() and len(scores) == 2 * 2
    for key, values in expected_scores.items():
        print(key, f"{values} (one device), {scores[key]} ({name})")
        assert scores[key] == pytest.approx(values, abs=1e-4), key
