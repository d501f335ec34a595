"""The model card: what is recorded at the checkpoint's step, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from ascend_cpt.checkpoint.state import RunState, write_state
from ascend_cpt.errors import DataError
from ascend_cpt.monitor.history import read_run_info
from ascend_cpt.recipe.schedule import build_schedule
from ascend_cpt.run.export.base_weights import describe_base, find_hub_name
from ascend_cpt.run.export.model_card import make_card
from ascend_cpt.run.trained_model import TrainedModel
from ascend_cpt.weights.convert import Options
from ascend_cpt.weights.safetensors_file import TensorInfo

CONFIG = {"model_type": "qwen3", "num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 512}
STEP = {"loss": 2.0, "total_steps": 20, "tokens": 100}
ARC = {"num_items": 9, "values": {"acc": 0.5}, "higher_is_better": True}
RECORDS: list[dict[str, Any]] = [
    {"kind": "validation", "step": 0, "name": "held|out", "loss": 3.0},
    {"kind": "task", "step": 0, "name": "arc", "metric": "acc", "score": 0.25, **ARC},
    {"kind": "data", "step": 8, "tokens": {"a": {"web": 1000}, "b": {"web": 500, "qa": 24}}, "epochs": {"web": 1.5}},
    {"kind": "step", "step": 10, **STEP, "num_skipped": 1},
    {"kind": "validation", "step": 10, "name": "held|out", "loss": 2.5},
    {"kind": "task", "step": 10, "name": "arc", "metric": "acc", "score": 0.5, **ARC},
    {"kind": "step", "step": 20, **STEP, "num_skipped": 7},
    {"kind": "validation", "step": 20, "name": "held|out", "loss": 2.25},
    {"kind": "validation", "step": 20, "name": "late", "loss": 1.5},
    {"kind": "data", "step": 20, "tokens": {"a": {"web": 2000}}, "epochs": {"web": 2.0}},
]
INFO = {
    "num_devices": 8,
    "device_name": "Ascend910B3",
    "validation": {"held|out": {"rows": 10, "of_rows": 100}},
    "base": {"kind": "hugging_face", "name": "Qwen/Qwen3-8B-Base", "base_model": "Qwen/Qwen3-8B-Base"},
    "software": {"mindspore": "2.9.0"},
}


def write_run(run_dir: Path, *, info: Mapping[str, Any] = INFO, records: list[dict[str, Any]] = RECORDS) -> Path:
    """Write the records of a run of 20 steps, saved at steps 10, 15 and 20."""
    schedule = build_schedule("cosine", peak_lr=1e-3, final_lr=1e-4, total_steps=20, warmup_steps=4)
    fingerprint = {
        "seq_length": 64,
        "global_batch_size": 8,
        "schedule": schedule.to_record(),
        "phases": [["a", 0, 15, [["web", "3/4"], ["qa", "1/4"]]], ["b", 15, 20, None]],
        "optimizer": {"type": "AdamW", "weight_decay": 0.1},
        "seed": 42,
    }
    for step in (10, 15, 20):
        folder = run_dir / f"checkpoint/iteration_{step:08d}"
        folder.mkdir(parents=True)
        rows = step * 8
        write_state(
            folder, RunState(step=step, total_steps=20, tokens=rows * 64, position=rows, fingerprint=fingerprint)
        )
    (run_dir / "run.json").write_text(json.dumps(info), encoding="utf-8")
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in records), encoding="utf-8")
    return run_dir


def open_steps(run_dir: Path, *steps: int) -> TrainedModel:
    source: Any = SimpleNamespace(path=run_dir, tensors={"w": TensorInfo(name="w", dtype="F32", shape=(2, 2))})
    origins = tuple(run_dir / f"checkpoint/iteration_{step:08d}" for step in steps)
    return TrainedModel(source=source, config=CONFIG, companions=(), origins=origins)


def read_front_matter(card: str) -> Any:
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("---\n")[1])


def test_card_of_an_earlier_checkpoint_has_the_values_of_its_step(tmp_path: Path) -> None:
    run = write_run(tmp_path / "my_run")
    card = make_card(Path("out put"), open_steps(run, 10), Options())
    assert read_front_matter(card) == {
        "library_name": "transformers",
        "base_model": "Qwen/Qwen3-8B-Base",
        "tags": ["ascend_cpt", "continued-pretraining"],
    }
    for text in (
        "# my_run\n",
        "The weights are those after step 10 of 20.",
        "## Base\n\nThe weights of Qwen/Qwen3-8B-Base.\n",
        "| tokens | 5.12K in 10 of 20 steps |",
        "| batch | 8 rows × 64 tokens = 512 tokens per step |",
        "| learning rate | cosine: 0.001 → 0.0001 (cosine) over 16 steps |",
        "| phase | a: steps 0 to 15, web 0.75, qa 0.25 |",
        "| phase | b: steps 15 to 20, all rows shuffled together |",
        "| optimizer | type AdamW, weight_decay 0.1 |",
        "| devices | 8 × Ascend910B3 |",
        "| skipped updates | 1 of 10 |",
        "## Data up to step 8\n",
        "| web | 1.5K | 1.50 |",
        "| held\\|out | 10 of 100 | 3.0000 (step 0) | 2.5000 | -0.5000 |",
        "| arc | acc | 0.2500 (step 0) | 0.5000 | +0.2500 |",
        "| mindspore | 2.9.0 |",
        f"python tools/convert_weights.py verify 'out put' --against {run}/checkpoint/iteration_00000010\n",
    ):
        assert text in card, text
    assert "late" not in card and "2.25" not in card


def test_card_of_the_last_checkpoint(tmp_path: Path) -> None:
    card = make_card(Path("out"), open_steps(write_run(tmp_path / "run"), 20), Options())
    assert "| held\\|out | 10 of 100 | 3.0000 (step 0) | 2.2500 | -0.7500 |" in card
    assert "| late |  |  | 1.5000 |  |" in card, "its first value is not from before the training"
    assert "## Data\n" in card and "| arc |" not in card, "no score was recorded at the last step"


def test_what_is_not_recorded_is_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", info={}, records=RECORDS[:1])
    card = make_card(Path("out"), open_steps(run, 15), Options())
    assert read_front_matter(card) == {"library_name": "transformers", "tags": ["ascend_cpt"]}
    assert [line for line in card.splitlines() if line.startswith("## ")] == ["## Recipe", "## Verification"]
    assert "None" not in card and "devices" not in card and "skipped" not in card


def test_card_of_a_converted_folder_and_of_a_gathered_checkpoint(tmp_path: Path) -> None:
    source: Any = SimpleNamespace(path=tmp_path, tensors={})
    trained = TrainedModel(source=source, config=CONFIG, companions=(), origins=(tmp_path / "converted",))
    card = make_card(Path("out"), trained, Options())
    assert "# out\n" in card and "## Recipe" not in card and f"--against {tmp_path}/converted" in card
    # The folder of a gathered checkpoint is not in a run folder: the metrics of another run are not its own.
    run = write_run(tmp_path / "run")
    gathered = run / "a" / "gathered"
    gathered.mkdir(parents=True)
    state = (run / "checkpoint/iteration_00000010/cpt_state.json").read_text(encoding="utf-8")
    (gathered / "cpt_state.json").write_text(state, encoding="utf-8")
    trained = TrainedModel(source=source, config=CONFIG, companions=(), origins=(gathered,))
    assert "3.0000 (step 0)" not in make_card(Path("out"), trained, Options())


def test_mean_and_converted_weights(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    card = make_card(Path("out"), open_steps(run, 20, 15), Options())
    assert "the mean of the checkpoints after steps 20, 15" in card and card.endswith(
        "iteration_00000020 --average 2\n"
    )
    assert "The values are those of the checkpoint after step 20, not of the mean." in card
    card = make_card(Path("out"), open_steps(run, 20), Options(dtype="bfloat16", vocab_size=600))
    assert "They were converted to bfloat16." in card and "vocabulary 600" in card
    assert "measured before the weights were converted" in card
    assert card.endswith("verify out\n"), "it is not bit-equal to the run"
    assert "--against" in make_card(Path("out"), open_steps(run, 20), Options(dtype="float32", vocab_size=512))


def test_base_weights(tmp_path: Path) -> None:
    assert describe_base("random") == {"kind": "random"}
    cached = tmp_path / "hub/models--Qwen--Qwen3-8B-Base/snapshots/0123abc"
    local = tmp_path / "models/Qwen3-8B-Base"
    for folder in (cached, local):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").touch()
    assert find_hub_name(cached) == "Qwen/Qwen3-8B-Base" and find_hub_name(local) is None
    assert describe_base(str(local)) == {"kind": "hugging_face", "name": "Qwen3-8B-Base"}
    (tmp_path / "link").symlink_to(cached)
    hub = "Qwen/Qwen3-8B-Base"
    assert describe_base(str(tmp_path / "link")) == {"kind": "hugging_face", "name": hub, "base_model": hub}
    run = write_run(tmp_path / "first")
    assert describe_base(str(run)) == {"kind": "run", "name": "first", "step": 20, "base_model": hub}
    (run / "best").write_text("iteration_00000010\n", encoding="utf-8")
    assert describe_base(str(run / "best"))["step"] == 10
    (run / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="run.json: is not valid JSON"):
        read_run_info(run)
