"""A run with adapters from start to export: resumed exactly, merged, written for PEFT, and tied to its base."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from ascend_cpt.config.loader import load_config
from ascend_cpt.weights.convert import Options, write_hf
from ascend_cpt.weights.hf_config import make_config
from tests.growth import RandomWeights
from tests.integration.conftest import SEQ_LENGTH, read_history, run_command

pytestmark = pytest.mark.timeout(2400)
TIMEOUT_S = 900
LORA = {"rank": 4, "alpha": 8, "targets": ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]}
CONVERT = [sys.executable, "tools/convert_weights.py"]


def write(write_config: Callable[..., Path], base: Path, **changes: Any) -> Path:
    settings = {
        "init_from": str(base),
        "lora": LORA,
        "train_tokens": 4 * 8 * SEQ_LENGTH,
        "schedule": {"peak_lr": 1e-2},
        "validation": None,
        "checkpoint": {"every": "2 steps", "keep_last": 0},
        **changes,
    }
    return write_config(**settings)


def make_base(write_config: Callable[..., Path], folder: Path) -> Path:
    """Write a Hugging Face folder with random weights of the model that the tests train."""
    model = load_config(write_config()).mindformers["model"]["model_config"]
    write_hf(RandomWeights(make_config(model)), make_config(model), folder, Options())
    return folder


def train(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_command([sys.executable, "run_cpt.py", "--config", str(config), *arguments], timeout_s=TIMEOUT_S)


def check(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def add_product(base: dict[str, np.ndarray], adapters: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return base + alpha / rank · B·A."""
    merged = dict(base)
    for name, lora_a in adapters.items():
        if name.endswith("lora_A.weight"):
            weight = name.removeprefix("base_model.model.").replace("lora_A.", "")
            merged[weight] = base[weight] + np.float32(2) * (adapters[name.replace("lora_A", "lora_B")] @ lora_a)
    return merged


def test_resumed_exported_and_tied_to_its_base(write_config: Callable[..., Path], tmp_path: Path) -> None:
    base = make_base(write_config, tmp_path / "base")
    path = write(write_config, base)
    stopped = check(train(path, "--stop-at-step", "2"))
    assert "adapters LoRA: rank 4, scale 2, on q_proj, v_proj, o_proj, up_proj, down_proj" in stopped
    run = tmp_path / "output/run"
    checkpoint = run / "checkpoint/iteration_00000002"
    assert all(".lora_" in name for name in load_file(next(checkpoint.glob("cpt-model-*"))))
    assert sum(file.stat().st_size for file in checkpoint.iterdir()) < (base / "model.safetensors").stat().st_size

    # Another base is refused, the same weights in another folder are not.
    weights = load_file(base / "model.safetensors")
    moved = Path(shutil.copytree(base, tmp_path / "moved"))
    changed = {**weights, "model.layers.1.mlp.up_proj.weight": weights["model.layers.1.mlp.up_proj.weight"] + 1e-3}
    save_file(changed, moved / "model.safetensors")
    refused = train(write(write_config, moved))
    assert refused.returncode == 2
    assert (
        f"its adapters were trained on the weights of {base}, but {moved} (cpt.init_from) has other" in refused.stderr
    )
    save_file(weights, moved / "model.safetensors")
    assert f"continuing at step 2 from {checkpoint}" in check(train(write(write_config, moved)))

    whole = check(train(write(write_config, base, run_name="whole")))
    assert "continuing" not in whole
    assert read_history(run) == read_history(tmp_path / "output/whole")

    adapters, merged = tmp_path / "adapters", tmp_path / "merged"
    check(run_command([*CONVERT, "to-hf", str(run), str(adapters)], timeout_s=TIMEOUT_S))
    assert sorted(file.name for file in adapters.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    check(run_command([*CONVERT, "to-hf", str(run), str(merged), "--merge"], timeout_s=TIMEOUT_S))
    found = load_file(merged / "model.safetensors")
    expected = add_product(weights, load_file(adapters / "adapter_model.safetensors"))
    assert found.keys() == weights.keys()
    for name, tensor in expected.items():
        np.testing.assert_allclose(found[name], tensor, rtol=0, atol=1e-7, err_msg=name)
        assert np.array_equal(found[name], weights[name]) != any(f".{target}." in name for target in LORA["targets"])
    card = (merged / "README.md").read_text(encoding="utf-8")
    assert "LoRA: rank 4, alpha 8, on q_proj, v_proj" in card
    verified = run_command([*CONVERT, "verify", str(merged), "--against", str(run), "--no-logits"], timeout_s=TIMEOUT_S)
    assert check(verified).endswith("equal\n")

    shutil.rmtree(moved)
    lost = run_command([*CONVERT, "to-hf", str(run), str(tmp_path / "lost"), "--merge"], timeout_s=TIMEOUT_S)
    assert lost.returncode == 2 and f"belong to the weights of {moved}, which is missing" in lost.stderr
    again = [*CONVERT, "to-hf", str(run), str(tmp_path / "again"), "--merge", "--base", str(base)]
    check(run_command(again, timeout_s=TIMEOUT_S))
    assert (tmp_path / "again/model.safetensors").read_bytes() == (merged / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_starts_from_a_run_validates_evaluates_and_exports(write_config: Callable[..., Path], tmp_path: Path) -> None:
    settings = {"train_tokens": 2 * 8 * SEQ_LENGTH, "schedule": {"peak_lr": 1e-3}, "validation": None}
    check(train(write_config(run_name="first", **settings)))
    first = tmp_path / "output/first"
    exported = tmp_path / "exported"
    held = yaml.safe_load(write_config().read_text(encoding="utf-8"))["cpt"]["validation"]["sets"]["held"]["path"]
    path = write(
        write_config,
        first,
        lora={**LORA, "rank_stabilized": True},
        loss_chunks=2,
        validation={"max_rows": 10, "sets": {"held": {"path": held}}},
        export={"to": str(exported)},
    )
    output = check(train(path))
    assert "adapters rsLoRA: rank 4, scale 4" in output and "export   verified against" in output
    run = tmp_path / "output/run"
    validations = [record[2] for record in read_history(run) if record[0] == "validation"]
    losses = []
    for model in (run, exported):
        evaluate = [sys.executable, "tools/evaluate.py", str(model), "--validation", f"held={held}", "--max-rows", "10"]
        records = tmp_path / f"{model.name}.json"
        check(run_command([*evaluate, "--json", str(records)], timeout_s=TIMEOUT_S))
        losses.append(json.loads(records.read_text(encoding="utf-8"))[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert losses[0] == pytest.approx(validations[-1], abs=1e-4)
    assert validations[-1] < validations[0]
    # Adapters are no start for another run.
    refused = train(write(write_config, run, run_name="next"))
    assert refused.returncode == 2 and "has only adapters; write the whole model with" in refused.stderr
