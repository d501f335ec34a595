"""Makes tiny random models and merges them with mergekit, for the tests of ascend_cpt/weights/merge.

Run it in an environment with mergekit (`pip install mergekit`), from the repository root:

    python tests/reference/make_merge_reference.py

`merge/` then holds the models (base, continued, instruct, other), the recipes, and mergekit.safetensors with the merged
tensors, named `<recipe>/<dtype>/<tensor>`. mergekit computes in float32. Same versions, same bytes.
"""

from __future__ import annotations

import importlib.metadata
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve().parent
FOLDER = HERE / "merge"
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Model → (standard deviation of its difference from base, data type). `other` does not depend on base.
MODELS: dict[str, tuple[float, torch.dtype]] = {
    "base": (0.0, torch.bfloat16),
    "continued": (0.002, torch.float32),  # close to base: slerp interpolates linearly
    "instruct": (0.05, torch.bfloat16),
    "other": (float("inf"), torch.float16),
}
# Recipe → its mergekit configuration, without data types.
RECIPES: dict[str, dict[str, Any]] = {
    "linear": {"merge_method": "linear", "weights": {"base": 0.3, "continued": 0.7}},
    "linear_soup": {"merge_method": "linear", "weights": {"base": 1.0, "continued": 2.0, "instruct": 4.0}},
    "linear_sum": {
        "merge_method": "linear",
        "weights": {"continued": 1.0, "instruct": 0.75, "base": -0.75},
        "parameters": {"normalize": False},
    },
    "slerp": {"merge_method": "slerp", "base_model": "base", "models": ["base", "other"], "parameters": {"t": 0.35}},
    "slerp_near": {
        "merge_method": "slerp",
        "base_model": "base",
        "models": ["base", "continued"],
        "parameters": {"t": 0.8},
    },
    "task_arithmetic": {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "weights": {"continued": 1.0, "instruct": 0.5},
    },
    "task_arithmetic_normalized": {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "weights": {"continued": 0.6, "instruct": 1.8},
        "parameters": {"normalize": True},
    },
}


def list_shapes() -> dict[str, tuple[int, ...]]:
    """Return name → shape of every tensor."""
    hidden, mlp, head = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["head_dim"]
    queries, keys = CONFIG["num_attention_heads"] * head, CONFIG["num_key_value_heads"] * head
    vocab = (CONFIG["vocab_size"], hidden)
    layer = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (mlp, hidden),
        "mlp.up_proj": (mlp, hidden),
        "mlp.down_proj": (hidden, mlp),
    }
    layers = {
        f"model.layers.{number}.{name}.weight": shape
        for number in range(CONFIG["num_hidden_layers"])
        for name, shape in layer.items()
    }
    return {"model.embed_tokens.weight": vocab, **layers, "model.norm.weight": (hidden,), "lm_head.weight": vocab}


def make_tensors(seed: int) -> dict[str, torch.Tensor]:
    """Return random float32 tensors."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 0.1 * torch.randn(shape, generator=generator) + int("norm" in name)
        for name, shape in list_shapes().items()
    }


def write_models() -> None:
    base = make_tensors(0)
    for seed, (name, (deviation, dtype)) in enumerate(MODELS.items()):
        noise = make_tensors(seed)
        tensors = noise
        if name != "other":
            tensors = {key: base[key] + 10 * deviation * (noise[key] - int("norm" in key)) for key in base}
        else:
            tensors["model.layers.1.input_layernorm.weight"].zero_()  # has no direction
        folder = FOLDER / name
        folder.mkdir(parents=True, exist_ok=True)
        contents = {**CONFIG, "dtype": str(dtype).removeprefix("torch.")}
        (folder / "config.json").write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
        save_file({k: v.to(dtype) for k, v in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})


def merge(recipe: dict[str, Any], out_dtype: str) -> dict[str, torch.Tensor]:
    """Return the tensors of mergekit's result."""
    config = {key: value for key, value in recipe.items() if key != "weights"}
    models: list[dict[str, Any]] = [{"model": str(FOLDER / name)} for name in recipe.get("models", ())]
    for name, weight in recipe.get("weights", {}).items():
        models.append({"model": str(FOLDER / name), "parameters": {"weight": weight}})
    config.update(models=models, dtype="float32", out_dtype=out_dtype)
    if "base_model" in config:
        config["base_model"] = str(FOLDER / config["base_model"])
    with tempfile.TemporaryDirectory() as folder:
        run_merge(MergeConfiguration.model_validate(config), folder, MergeOptions(copy_tokenizer=False))
        return {k: v for path in sorted(Path(folder).glob("*.safetensors")) for k, v in load_file(path).items()}


def main() -> None:
    write_models()
    results = {
        f"{name}/{dtype}/{tensor}": value
        for name, recipe in RECIPES.items()
        for dtype in ("float32", "bfloat16")
        for tensor, value in merge(recipe, dtype).items()
    }
    save_file(results, FOLDER / "mergekit.safetensors")
    (FOLDER / "recipes.json").write_text(json.dumps(RECIPES, indent=2) + "\n", encoding="utf-8")
    versions = {name: importlib.metadata.version(name) for name in ("mergekit", "torch", "numpy")}
    (FOLDER / "versions.json").write_text(json.dumps(versions, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
