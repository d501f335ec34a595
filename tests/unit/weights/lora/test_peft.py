"""Adapters against PEFT: merged weights give PEFT's logits, and the written folder is the one that PEFT wrote."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from ascend_cpt.errors import CheckpointError
from ascend_cpt.model.families import FAMILIES
from ascend_cpt.weights.dtypes import cast
from ascend_cpt.weights.forward import compute_logits
from ascend_cpt.weights.hf_folder import HfFolder
from ascend_cpt.weights.lora.merge import Adapters, FromHf, Merged
from ascend_cpt.weights.lora.peft import write_peft
from ascend_cpt.weights.mapping import iterate_to_hf
from tests.lora import KINDS, Reference, Tensors, read_reference

TOLERANCE = 1e-4


def open_adapters(reference: Reference) -> Adapters:
    return Adapters(Tensors(reference.join()), reference.sizes, reference.settings)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_give_the_logits_of_peft(kind: str) -> None:
    reference = read_reference(kind)
    merged = Merged(FromHf(HfFolder(reference.model)), open_adapters(reference), "F32")
    weights = dict(iterate_to_hf(reference.sizes, merged.read))
    tokens = np.load(reference.model / "expected.npz")["tokens"]
    logits = compute_logits(reference.sizes, weights.__getitem__, tokens)
    assert np.abs(logits - reference.expected["logits"]).max() < TOLERANCE
    assert np.abs(logits - reference.expected["merged_logits"]).max() < TOLERANCE
    # The adapters matter.
    without = np.load(reference.model / "expected.npz")["logits"]
    assert np.abs(without - reference.expected["logits"]).max() > 100 * TOLERANCE


def test_merged_weights_are_base_plus_product() -> None:
    reference = read_reference("some_stabilized")
    base = HfFolder(reference.model)
    merged = Merged(FromHf(base), open_adapters(reference), "F16")
    for name, tensor in iterate_to_hf(reference.sizes, merged.read):
        module = name.removesuffix(".weight")
        a, b = (reference.tensors.get(f"base_model.model.{module}.lora_{kind}.weight") for kind in "AB")
        expected = base.read(name).astype(np.float32)
        if a is not None and b is not None:
            expected = expected + np.float32(2 / np.sqrt(3)) * (b @ a)
            assert not np.array_equal(tensor, base.read(name))
        assert np.array_equal(tensor, cast(expected, "F32", "F16", name)), name


@pytest.mark.parametrize("kind", KINDS)
def test_the_written_folder_is_that_of_peft(kind: str, tmp_path: Path) -> None:
    reference = read_reference(kind)
    summary = write_peft(open_adapters(reference), reference.peft_config["base_model_name_or_path"], tmp_path / "out")
    written = load_file(tmp_path / "out/adapter_model.safetensors")
    assert written.keys() == reference.tensors.keys()
    assert all(np.array_equal(written[name], tensor) for name, tensor in reference.tensors.items())
    assert summary.num_parameters == sum(tensor.size for tensor in reference.tensors.values())
    config = json.loads((tmp_path / "out/adapter_config.json").read_text(encoding="utf-8"))
    assert config.items() <= reference.peft_config.items()
    with pytest.raises(CheckpointError, match="already exists"):
        write_peft(open_adapters(reference), "x", tmp_path / "out")


def test_a_checkpoint_with_other_adapters_is_refused() -> None:
    reference = read_reference("all")
    tensors = reference.join()
    tensors.pop("decoder.layers.1.mlp.linear_fc2.lora_b")
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.linear_fc2\.lora_b does not fit the adapters: None"):
        Adapters(Tensors(tensors), reference.sizes, reference.settings)


def test_every_family_has_the_targets_of_the_default() -> None:
    for family, rows in FAMILIES.items():
        names = {name for row in rows for name, _ in row.hf}
        assert any(name.endswith("self_attn.q_proj.weight") for name in names), family
