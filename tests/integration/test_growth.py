"""Larger models from extension to export: new tokens in two stages, and new blocks."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from ascend_cpt.model.families import HF_EMBEDDING, HF_OUTPUT
from ascend_cpt.weights.forward import compute_logits
from ascend_cpt.weights.hf_folder import HfFolder
from tests.growth import make_domain, write_byte_level, write_model, write_texts
from tests.integration.conftest import read_history, run_command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
TIMEOUT_S = 900
SEQ_LENGTH = 64
BATCH = {"train_tokens": 3 * 8 * SEQ_LENGTH, "schedule": {"peak_lr": 1e-2}, "validation": None}


def run(*command: str) -> str:
    result = run_command([sys.executable, *command], timeout_s=TIMEOUT_S)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def pack(texts: Path, tokenizer: Path, prefix: Path) -> str:
    """Pack texts into rows and return the prefix of the dataset."""
    command = ["tools/preprocess_data.py", "--input", str(texts), "--tokenizer-name-or-path", str(tokenizer)]
    run(*command, "--output-prefix", str(prefix), "--seq-length", str(SEQ_LENGTH))
    return f"{prefix}_text_document"


def write(write_config: Callable[..., Path], base: Path, dataset: str, **changes: object) -> Path:
    """Write the configuration of a run of three steps from the weights in `base`."""
    path = write_config(init_from=str(base), sources={"train": {"path": dataset}}, **{**BATCH, **changes})
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    fields = ("vocab_size", "num_hidden_layers", "tie_word_embeddings")
    sizes = {name: HfFolder(base).config[name] for name in fields}
    config["model"]["model_config"].update(sizes, head_dim=16)
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def export(source: Path, target: Path, like: Path) -> HfFolder:
    run("tools/convert_weights.py", "to-hf", str(source), str(target), "--like", str(like))
    return HfFolder(target)


def list_changed(before: HfFolder, after: HfFolder) -> set[str]:
    return {name for name in before.tensors if not np.array_equal(before.read(name), after.read(name))}


@pytest.mark.parametrize("is_tied", [False, True])
def test_new_tokens_in_two_stages(
    write_config: Callable[..., Path], tmp_path: Path, free_ports: list[int], is_tied: bool
) -> None:
    base = write_model(tmp_path / "base", write_byte_level(tmp_path / "tokenizer"), 302, is_tied=is_tied)
    texts, extended = write_texts(tmp_path / "domain.jsonl", make_domain(1000)), tmp_path / "extended"
    command = ["tools/extend_vocabulary.py", str(base), str(extended), "--input", str(texts), "--new-tokens", "30"]
    printed = run(*command, "--min-count", "3", "--heldout-share", "0.1")
    (keys,) = [line.split("#")[0].strip() for line in printed.splitlines() if "cpt.trainable:" in line]
    dataset = pack(texts, extended, tmp_path / "new")
    config = write(write_config, extended, dataset)
    stages = {
        "stages": [
            {"name": "rows", "config": config.name, "set": yaml.safe_load(keys)},
            {"name": "all", "config": config.name},
        ]
    }
    (tmp_path / "new_tokens.yaml").write_text(yaml.safe_dump(stages), encoding="utf-8")
    launch = ["1", str(free_ports[0]), str(tmp_path / "logs"), "False", "300"]
    run("tools/train_stages.py", str(tmp_path / "new_tokens.yaml"), *launch)

    start = HfFolder(extended)
    rows = export(tmp_path / "output/new_tokens_rows", tmp_path / "rows", extended)
    trained = {HF_EMBEDDING} if is_tied else {HF_EMBEDDING, HF_OUTPUT}
    assert list_changed(start, rows) == trained
    for name in trained:
        before, after = start.read(name), rows.read(name)
        assert np.array_equal(before[:302], after[:302])
        assert (before[302:332] != after[302:332]).any(axis=1).sum() > 10
    everything = export(tmp_path / "output/new_tokens_all", tmp_path / "all", extended)
    assert list_changed(rows, everything) == set(start.tensors)
    check_with_transformers(everything)


def check_with_transformers(folder: HfFolder) -> None:
    """Check that transformers loads the tokenizer and, where torch is installed, the model with the same logits."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder.path)
    text = make_domain(1)[0]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert 302 <= max(ids) < len(tokenizer) == 332 <= folder.sizes.vocab_size
    if importlib.util.find_spec("torch") is None:
        return
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder.path, torch_dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits.numpy()
    np.testing.assert_allclose(logits, compute_logits(folder.sizes, folder.read, np.array([ids])), atol=1e-4)


def test_only_new_blocks_are_trained(write_config: Callable[..., Path], tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", write_byte_level(tmp_path / "tokenizer"), 302)
    texts, expanded = write_texts(tmp_path / "general.jsonl", make_domain(300)), tmp_path / "expanded"
    printed = run("tools/convert_weights.py", "expand", str(base), str(expanded), "--every", "2")
    (keys,) = [line.split("#")[0].strip() for line in printed.splitlines() if "cpt.trainable:" in line]
    trainable = yaml.safe_load(keys)["cpt.trainable"]
    assert trainable == ["decoder.layers.2.*"]
    dataset = pack(texts, base, tmp_path / "old")
    losses = {}
    for name, folder, changes in (("old", base, {}), ("new", expanded, {"trainable": trainable})):
        run("run_cpt.py", "--config", str(write(write_config, folder, dataset, run_name=name, **changes)))
        losses[name] = [record[2] for record in read_history(tmp_path / "output" / name)]
    assert losses["new"][0] == pytest.approx(losses["old"][0], abs=1e-6)
    assert losses["new"][1] != losses["old"][1]

    exported = export(tmp_path / "output/new", tmp_path / "exported", expanded)
    changed = list_changed(HfFolder(expanded), exported)
    # The inner tensors get a gradient once the two zero tensors have changed, in the second step. The third has rate 0.
    assert changed == {name for name in exported.tensors if name.startswith("model.layers.2.")}
    record = json.loads((expanded / "new_blocks.json").read_text(encoding="utf-8"))
    assert (record["new_layers"], record["copied_from"]) == ([2], [1])
