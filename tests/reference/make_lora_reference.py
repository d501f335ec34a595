"""Makes the reference values of adapters with PEFT, transformers and torch, for the tests beside it.

Run it where all three are installed, from the repository root:

    python tests/reference/make_lora_reference.py

For every kind of adapter it writes lora/NAME: the adapters of a model beside it with random A and B as PEFT saves them,
and expected.npz: PEFT's logits and loss in float32 for the tokens of the model, the logits of the merged model, and the
gradients of the loss by A and B. Same versions, same bytes.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers

HERE = Path(__file__).resolve().parent
FOLDER = HERE / "lora"
IGNORED_LABEL = -100
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# name → model, fields of PEFT's LoraConfig
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "all": ("qwen3", {"r": 4, "lora_alpha": 8, "target_modules": ALL}),
    "some_stabilized": (
        "qwen3",
        {"r": 3, "lora_alpha": 2, "use_rslora": True, "target_modules": ["q_proj", "v_proj", "up_proj"]},
    ),
    "with_bias": ("qwen25_tied", {"r": 2, "lora_alpha": 4, "target_modules": ["k_proj", "o_proj", "down_proj"]}),
}


def make_adapted(model_name: str, fields: dict[str, Any], seed: int) -> Any:
    """Return the model in float32 with adapters, whose A and B are both random."""
    model = transformers.AutoModelForCausalLM.from_pretrained(HERE / model_name, attn_implementation="eager").float()
    config = peft.LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, bias="none", **fields)
    adapted = peft.get_peft_model(model.eval(), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(adapted.named_parameters()):
            if "lora_" in name:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    return adapted


def compute_expected(adapted: Any, model_name: str) -> dict[str, np.ndarray]:
    """Return what PEFT computes for the tokens of the model."""
    values = np.load(HERE / model_name / "expected.npz")
    tokens, labels = torch.tensor(values["tokens"]).long(), torch.tensor(values["labels"]).long()
    logits = adapted(input_ids=tokens).logits
    loss = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=IGNORED_LABEL
    )
    loss.backward()
    gradients = {
        f"gradient {name.replace('.default', '')}": weight.grad.numpy()
        for name, weight in adapted.named_parameters()
        if weight.grad is not None
    }
    return {"logits": logits.detach().numpy(), "loss": loss.detach().numpy(), **gradients}


def main() -> None:
    for seed, (name, (model_name, fields)) in enumerate(KINDS.items()):
        adapted = make_adapted(model_name, fields, seed)
        expected = compute_expected(adapted, model_name)
        adapted.save_pretrained(FOLDER / name)
        (FOLDER / name / "README.md").unlink(missing_ok=True)
        config_path = FOLDER / name / "adapter_config.json"
        config = json.loads(config_path.read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = model_name
        config["target_modules"] = sorted(config["target_modules"])
        config_path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        tokens = torch.tensor(np.load(HERE / model_name / "expected.npz")["tokens"]).long()
        with torch.no_grad():
            expected["merged_logits"] = adapted.merge_and_unload()(input_ids=tokens).logits.numpy()
        np.savez_compressed(FOLDER / name / "expected.npz", **expected)
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    versions |= {"transformers": transformers.__version__, "peft": peft.__version__}
    (FOLDER / "versions.json").write_text(json.dumps(versions, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
