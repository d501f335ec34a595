"""tools/evaluate.py on runs of a tiny model on a CPU: alone, on two workers, and following a run."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from ascend_cpt.checkpoint.checksums import checksum_file
from ascend_cpt.checkpoint.state import read_state, write_state
from tests.integration.conftest import REPOSITORY, TASKS, make_sections, pack_rows, run_command

TOOL = [sys.executable, "tools/evaluate.py"]


def write_config(folder: Path, packed: Path, **cpt: Any) -> Path:
    sections = make_sections(
        packed,
        folder / "output",
        **{
            "train_tokens": 12 * 4 * 64,
            "global_batch_size": 4,
            "checkpoint": {"every": "4 steps", "keep_last": 0},
            "validation": None,
            **cpt,
        },
    )
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(sections, sort_keys=False), encoding="utf-8")
    return path


def validate(packed: Path, **entry: Any) -> dict[str, Any]:
    return {"every": "4 steps", "max_rows": 10, "sets": {"held": {"path": str(packed), **entry}}}


def read_records(run: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    if not (run / name).is_file():
        return []
    records = map(json.loads, (run / name).read_text(encoding="utf-8").splitlines())
    return [record for record in records if record["kind"] == "validation"]


def train(config: Path, *arguments: str) -> Path:
    result = run_command([sys.executable, "run_cpt.py", "--config", str(config), *arguments])
    assert result.returncode == 0, result.stderr
    (run,) = (config.parent / "output").iterdir()
    return run


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory, packed: Path) -> tuple[Path, Path]:
    """Return the configuration and the run folder of a run with validation in training."""
    folder = tmp_path_factory.mktemp("validated")
    config = write_config(folder, packed, validation=validate(packed))
    return config, train(config)


def test_losses_are_those_of_training(validated: tuple[Path, Path], tmp_path: Path) -> None:
    config, run = validated
    expected = {record["step"]: record["loss"] for record in read_records(run)}
    result = run_command([*TOOL, str(run), "--config", str(config), "--json", str(tmp_path / "a.json")])
    assert result.returncode == 0, result.stderr
    (record,) = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert record["step"] == 12 and abs(record["loss"] - expected[12]) < 1e-6
    held = yaml.safe_load(config.read_text(encoding="utf-8"))["cpt"]["validation"]["sets"]["held"]["path"]
    step = run / "checkpoint/iteration_00000004"
    arguments = [str(step), "--validation", f"held={held}", "--max-rows", "10", "--json", str(tmp_path / "b.json")]
    result = run_command([*TOOL, *arguments])
    assert result.returncode == 0, result.stderr
    (record,) = json.loads((tmp_path / "b.json").read_text(encoding="utf-8"))
    assert record["step"] == 4 and abs(record["loss"] - expected[4]) < 1e-6


def test_attention_within_documents_is_that_of_the_run(tmp_path: Path) -> None:
    """Also without its configuration: the losses are those of the validation in training."""
    packed = pack_rows(tmp_path / "short_documents", num_rows=10, pads=False, eod_every=16)
    config = write_config(
        tmp_path, packed, train_tokens=8 * 4 * 64, validation=validate(packed), document_attention="within"
    )
    run = train(config)
    (expected,) = (record["loss"] for record in read_records(run) if record["step"] == 8)
    found = {}
    for name, arguments in {"own": [], "across": ["--document-attention", "across"]}.items():
        out = tmp_path / f"{name}.json"
        words = [str(run), "--validation", f"held={packed}", "--max-rows", "10", *arguments, "--json", str(out)]
        result = run_command([*TOOL, *words])
        assert result.returncode == 0, result.stderr
        (record,) = json.loads(out.read_text(encoding="utf-8"))
        found[name] = record["loss"]
    assert abs(found["own"] - expected) < 1e-6 and abs(found["across"] - expected) > 1e-5, (found, expected)


def split_run(run: Path, folder: Path) -> list[Path]:
    """Return the run folders of two nodes, each with one half of every tensor; the second one has the records."""
    nodes = [folder / name / "run" for name in ("a", "b")]
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    for node in nodes:
        node.mkdir(parents=True)
        shutil.copy(run / "resolved.yaml", node)
        lines = (json.dumps(record) + "\n" for record in steps if record["kind"] == "step")
        (node / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    shutil.copy(run / "run.json", nodes[1])
    for checkpoint in (run / "checkpoint").glob("iteration_*"):
        (weights,) = checkpoint.glob("*model*.safetensors")
        tensors = load_file(weights)
        files = [f"cpt-model-{rank:07d}-0000002.safetensors" for rank in range(2)]
        metadata = {
            "state_dict_metadata": {
                name: {
                    "global_shape": list(tensor.shape),
                    "axis_fragmentations": [2, *[1] * (tensor.ndim - 1)],
                    "layout": {"interleaved_parallel": False},
                    "chunk": [{"global_offset": [index]} for index in range(2)],
                }
                for name, tensor in tensors.items()
            },
            "storage_data": {
                str((name, (index,))): [{"file_name": file}] for name in tensors for index, file in enumerate(files)
            },
        }
        for index, node in enumerate(nodes):
            part = node / "checkpoint" / checkpoint.name
            part.mkdir(parents=True)
            halves = {name: np.ascontiguousarray(np.split(tensor, 2)[index]) for name, tensor in tensors.items()}
            save_file(halves, part / files[index])
            (part / "metadata.json").write_text(json.dumps(metadata), encoding="utf-8")
            sizes = {path.name: path.stat().st_size for path in part.iterdir()}
            checksums = {name: checksum_file(part / name) for name in sizes}
            write_state(part, dataclasses.replace(read_state(checkpoint), files=sizes, checksums=checksums))
    return nodes


def test_parts_of_nodes_are_gathered(validated: tuple[Path, Path], tmp_path: Path) -> None:
    config, run = validated
    expected = {record["step"]: record["loss"] for record in read_records(run)}
    nodes = [str(node) for node in split_run(run, tmp_path)]
    out = tmp_path / "a.json"
    result = run_command([*TOOL, *nodes, "--config", str(config), "--json", str(out)])
    assert result.returncode == 0, result.stderr
    (record,) = json.loads(out.read_text(encoding="utf-8"))
    assert record["step"] == 12 and abs(record["loss"] - expected[12]) < 1e-6
    result = run_command([*TOOL, nodes[0], "--config", str(config)])
    assert result.returncode == 2 and "no part has the shards of rank 1; give the folders" in result.stderr
    for _ in range(2):
        result = run_command([*TOOL, *nodes, "--config", str(config), "--watch"])
        assert result.returncode == 0, result.stderr
        found = {record["step"]: record["loss"] for record in read_records(Path(nodes[1]), "evaluations.jsonl")}
        assert found == pytest.approx({step: expected[step] for step in (4, 8, 12)}, abs=1e-6)
    assert not read_records(Path(nodes[0]), "evaluations.jsonl")
    assert list_tracked_steps(Path(nodes[1])) == [4, 8, 12]


def list_tracked_steps(run: Path) -> list[int]:
    """Return the steps of the evaluations in TensorBoard, read in a process without MindSpore's protobuf messages."""
    code = "import sys, pathlib; from tests.unit.monitor.test_trackers import read_evaluations as read; "
    code += "print([step for step, _ in read(pathlib.Path(sys.argv[1]))])"
    result = run_command([sys.executable, "-c", code, str(run)])
    assert result.returncode == 0, result.stderr
    return list(json.loads(result.stdout))


def test_two_workers_and_a_task(validated: tuple[Path, Path], tokenizer: Path, tmp_path: Path) -> None:
    config, run = validated
    task = f"choices=multiple_choice:{TASKS / 'plain_choices.jsonl'}"
    common = f"{run} --config {config} --task {task} --tokenizer {tokenizer} --seq-length 256"
    found = []
    for workers in (1, 2):
        out = tmp_path / f"{workers}.json"
        command = f"tools/evaluate.py {common} --json {out}"
        words = (
            ["bash", "scripts/msrun_launcher.sh", command, "2"] if workers == 2 else [sys.executable, *command.split()]
        )
        result = run_command(words)
        assert result.returncode == 0, result.stdout + result.stderr
        found.append(json.loads(out.read_text(encoding="utf-8")))
    one, two = found
    assert [record["kind"] for record in one] == [record["kind"] for record in two] == ["validation", "task"]
    assert abs(one[0]["loss"] - two[0]["loss"]) < 1e-6
    assert one[1]["num_items"] == two[1]["num_items"] > 0
    assert one[1]["values"] == pytest.approx(two[1]["values"], abs=1e-5)


def test_watcher_neither_repeats_nor_skips(packed: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, packed)
    run = train(config)
    judged = write_config(tmp_path, packed, validation=validate(packed))
    first = subprocess.Popen(
        [*TOOL, str(run), "--config", str(judged), "--watch"], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    deadline = time.monotonic() + 120
    while not read_records(run, "evaluations.jsonl") and time.monotonic() < deadline:
        time.sleep(0.05)
    second = run_command([*TOOL, str(run), "--config", str(judged), "--watch"])
    first.kill()
    first.communicate()
    assert second.returncode in (0, 2)
    if second.returncode == 2:
        assert "another process is already evaluating this run" in second.stderr
    last = run_command([*TOOL, str(run), "--config", str(judged), "--watch"])
    assert last.returncode == 0, last.stderr
    assert "the run has ended, and all its checkpoints have been evaluated" in last.stdout
    assert [record["step"] for record in read_records(run, "evaluations.jsonl")] == [4, 8, 12]
    assert list_tracked_steps(run) == [4, 8, 12]
    summary = run_command([sys.executable, "tools/summarize_run.py", str(run)])
    assert "held" in summary.stdout, summary.stderr


def test_checkpoints_that_are_deleted_are_skipped(packed: Path, tmp_path: Path) -> None:
    run = train(write_config(tmp_path, packed))
    judged = write_config(tmp_path, packed, validation=validate(packed))
    # Complete by its state, but one file is gone: as when the run deletes the folder while it is read.
    (weights,) = (run / "checkpoint/iteration_00000004").glob("*model*.safetensors")
    watching = subprocess.Popen(
        [*TOOL, str(run), "--config", str(judged), "--watch"], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    time.sleep(1.0)  # before the imports are over
    weights.unlink()
    stdout, _ = watching.communicate(timeout=200)
    assert watching.returncode == 0, stdout
    assert [record["step"] for record in read_records(run, "evaluations.jsonl")] == [8, 12]


def test_alarm_of_a_watcher_stops_the_run(packed: Path, tmp_path: Path) -> None:
    # The more of its data the model learns, the worse it predicts random tokens.
    held = pack_rows(tmp_path / "random_text_document", num_rows=4, pads=False, is_random=True)
    config = write_config(
        tmp_path,
        packed,
        run_name="forgets",
        train_tokens=4000 * 4 * 64,
        schedule={"peak_lr": 1e-2, "final_lr": 1e-2, "warmup_tokens": 256},
        checkpoint={"every": "20 steps", "keep_last": 3},
    )
    judged = tmp_path / "judged.yaml"
    sections = yaml.safe_load(config.read_text(encoding="utf-8"))
    sections["cpt"]["validation"] = {
        "every": "20 steps", "max_rows": 4,
        "sets": {"held": {"path": str(held), "max_increase": 0.0, "on_increase": "stop"}},
    }  # fmt: skip
    judged.write_text(yaml.safe_dump(sections, sort_keys=False), encoding="utf-8")
    run = tmp_path / "output/forgets"
    training = subprocess.Popen(
        [sys.executable, "run_cpt.py", "--config", str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    watching = run_command([*TOOL, str(run), "--config", str(judged), "--watch", "--poll", "0.5"])
    _, stderr = training.communicate(timeout=120)
    if watching.returncode == 0:
        pytest.fail(watching.stdout)
    assert watching.returncode == 1 and "asked the run to stop: " in watching.stdout, watching.stderr
    assert training.returncode == 1 and "validation set held" in stderr and "saved in" in stderr
    assert not (run / "stop_requested.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to evaluate: give --validation NAME=PATH"),
        (["--validation", "held"], "--validation held: expected NAME=PATH"),
        (["--task", "a=multiple_choice"], "--task a=multiple_choice: expected NAME=KIND:PATH"),
        (["--task", "a=choice:x"], "'choice' is unknown"),
        (["--validation", "held=missing"], "validation set held: "),
        (["--validation", "held=x", "--poll", "0"], "--poll 0: must be above 0"),
        (["--set", "a=b"], "--set: overrides keys of a configuration; give one with --config"),
        (["--validation", "held=x", "--batch-size", "0"], "--batch-size 0: must be at least 1"),
    ],
)
def test_mistakes_are_reported_in_one_line(validated: tuple[Path, Path], arguments: list[str], message: str) -> None:
    result = run_command([*TOOL, str(validated[1]), *arguments])
    assert result.returncode == 2 and message in result.stderr, result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_watching_a_folder_without_a_run(tmp_path: Path) -> None:
    result = run_command([*TOOL, str(tmp_path), "--validation", "held=x", "--watch"])
    assert result.returncode == 2 and "no run has started in this folder" in result.stderr
