"""Writes adapters in the format of PEFT (Hugging Face): adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ascend_cpt.files import sync_file
from ascend_cpt.model.lora import LoraSettings
from ascend_cpt.weights.convert import CARD_NAME, Summary
from ascend_cpt.weights.dtypes import cast
from ascend_cpt.weights.folder_writer import create_folder, write_json
from ascend_cpt.weights.lora.merge import Adapters
from ascend_cpt.weights.safetensors_file import TensorInfo, write_file

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."


def make_peft_config(settings: LoraSettings, base_model: str) -> dict[str, Any]:
    """Return the content of adapter_config.json. Fields that are left out have PEFT's defaults."""
    return {
        "base_model_name_or_path": base_model,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": int(settings.alpha) if settings.alpha.is_integer() else settings.alpha,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": settings.rank,
        "target_modules": sorted(settings.targets),
        "task_type": "CAUSAL_LM",
        "use_rslora": settings.rank_stabilized,
    }


def write_peft(adapters: Adapters, base_model: str, target: Path, *, dtype: str = "F32", card: str = "") -> Summary:
    """Write adapters to the new folder `target`.

    Args:
        adapters: The adapters.
        base_model: Name or path of the model that they belong to, for PEFT.
        target: Folder to create.
        dtype: Number format of the written tensors, as in a safetensors header.
        card: Text of README.md; none if empty.

    Raises:
        CheckpointError: `target` exists or cannot be written, or a value is outside the range of `dtype`.
    """
    tensors = {}
    for module, lora_a, lora_b in adapters.iterate():
        for kind, tensor in (("lora_A", lora_a), ("lora_B", lora_b)):
            name = f"{_PREFIX}{module}.{kind}.weight"
            tensors[name] = np.ascontiguousarray(cast(tensor, "F32", dtype, name))
    infos = [TensorInfo(name=name, dtype=dtype, shape=tensors[name].shape) for name in sorted(tensors)]
    with create_folder(target) as folder:
        write_file(folder / WEIGHTS_NAME, infos, ((info.name, tensors[info.name]) for info in infos))
        write_json(folder / CONFIG_NAME, make_peft_config(adapters.settings, base_model))
        if card:
            (folder / CARD_NAME).write_text(card, encoding="utf-8")
        for path in folder.iterdir():
            sync_file(path)
    return Summary(
        path=target,
        num_tensors=len(infos),
        num_parameters=sum(info.num_elements for info in infos),
        size_bytes=sum(info.size_bytes for info in infos),
    )
