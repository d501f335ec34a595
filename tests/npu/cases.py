"""Test runs for an Atlas node: small models of each family, in several layouts.

`python tests/npu/cases.py DATASET FOLDER` writes the configurations and prints the command line of each.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

REPO_ROOT = Path(__file__).resolve().parents[2]
NUM_DEVICES = 8
NUM_STEPS = 20
FAMILIES = ("llama2", "llama3", "qwen2", "qwen3")
LAYOUTS: dict[str, dict[str, Any]] = {
    "dp8": {"data_parallel": 8, "model_parallel": 1, "pipeline_stage": 1},
    "dp4_tp2": {"data_parallel": 4, "model_parallel": 2, "pipeline_stage": 1, "use_seq_parallel": True},
    "dp2_tp2_pp2": {"data_parallel": 2, "model_parallel": 2, "pipeline_stage": 2},
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model family and a layout."""

    family: str
    layout: str

    @property
    def name(self) -> str:
        return f"{self.family}_{self.layout}"


# Every family once, and one family in every layout.
CASES = (
    *(Case(family=family, layout="dp8") for family in FAMILIES),
    *(Case(family="qwen3", layout=layout) for layout in LAYOUTS if layout != "dp8"),
)


def write_config(case: Case, *, dataset: Path, seq_length: int, vocab_size: int, folder: Path, **changes: Any) -> Path:
    """Write the configuration of a case into `folder` and return its path; the run goes to `folder`/output/<name>.

    `changes` replace keys of the `cpt:` section.
    """
    sizes = {
        "vocab_size": vocab_size,
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 8 if case.family == "llama2" else 4,
        "head_dim": 64,
        "max_position_embeddings": seq_length,
        "use_attn_mask_compression": False,  # its fixed mask is larger than these rows
        "tie_word_embeddings": False,
    }
    bases = [f"{REPO_ROOT}/configs/base/{name}.yaml" for name in ("atlas_a2_8x64g", f"{case.family}_tiny")]
    config = {
        "base_config": bases,
        "output_dir": str(folder / "output"),
        "parallel_config": LAYOUTS[case.layout],
        "runner_config": {"batch_size": 1},
        "model": {"model_config": sizes},
        "cpt": {
            "run_name": case.name,
            "init_from": "random",
            "seq_length": seq_length,
            "global_batch_size": 16,
            "train_tokens": NUM_STEPS * 16 * seq_length,
            "schedule": {"kind": "cosine", "peak_lr": 1e-3, "final_lr": 1e-4, "warmup_tokens": 2 * 16 * seq_length},
            "sources": {"train": {"path": str(dataset)}},
            "checkpoint": {"every": 10 * 16 * seq_length, "keep_last": 2},
            **changes,
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{case.name}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def build_command(config: Path, *arguments: str) -> list[str]:
    """Return the command that trains a configuration on the devices of this node."""
    words = shlex.join(["run_cpt.py", "--config", str(config), *arguments])
    return ["bash", f"{REPO_ROOT}/scripts/msrun_launcher.sh", words, str(NUM_DEVICES)]


if __name__ == "__main__":
    sys.path.insert(0, str(REPO_ROOT))
    from ascend_cpt.data.packed.manifest import load_manifest

    manifest = load_manifest(Path(sys.argv[1]))
    for case in CASES:
        config = write_config(
            case,
            dataset=Path(sys.argv[1]),
            seq_length=manifest.seq_length,
            vocab_size=-(-manifest.tokenizer.vocab_size // 128) * 128,
            folder=Path(sys.argv[2]),
        )
        print(shlex.join(build_command(config)))
