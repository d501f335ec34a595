"""The keys that MindFormers 1.9 reads, collected from the installed package.

MindFormers does not check nested YAML keys, so it silently ignores a misspelled one. `collect_key_table` collects the
keys from the code that reads them. The result is checked in as `ascend_cpt/config/mindformers_keys.json`, so that
checking a configuration takes milliseconds, without importing MindFormers. A test compares the file with the package.

Run `python -m ascend_cpt.backend.mindformers_keys` to regenerate the file after changing the MindFormers version.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import yaml

KEY_TABLE_PATH = Path(__file__).resolve().parents[1] / "config" / "mindformers_keys.json"

# Keys that MindFormers 1.9.0 reads with `config.get` or `config.x` but does not list in any table.
EXTRA_KEYS: dict[str, list[str]] = {
    "": [
        "auto_tune",
        "autotune_per_step",
        "calculate_per_token_loss",
        "check_for_nan_in_loss_and_grad",
        "checkpoint",
        "filepath_prefix",
        "grouped_lr_schedule",
        "parallel_speed_up_json_path",
        "remove_redundancy",
        "tensorboard",
        "train_precision_sync",
        "use_graceful_exit",
        "use_skip_data_by_global_norm",
    ],
    "checkpoint": [
        "async_save",
        "load_balanced",
        "load_path",
        "no_load_optim",
        "no_save_optim",
        "prefix",
        "reshard_worker_num",
        "save_interleaved_steps",
        "save_max",
        "save_path",
        "save_remove_redundancy",
    ],
    "tensorboard": [
        "log_loss_scale_to_tensorboard",
        "log_timers_to_tensorboard",
        "tensorboard_dir",
        "tensorboard_queue_size",
    ],
    "context": [
        "affinity_config",
        "affinity_cpu_list",
        "ascend_config",
        "device_id",
        "enable_graph_kernel",
        "graph_kernel_flags",
        "jit_config",
        "jit_level",
        "max_call_depth",
        "max_device_memory",
        "memory_optimize_level",
        "mempool_block_size",
        "op_timeout",
        "runtime_num_threads",
        "save_graphs",
        "save_graphs_path",
    ],
    "runner_wrapper": ["type", "scale_sense", "use_clip_grad", "max_grad_norm", "local_norm"],
    "optimizer": ["type", "betas", "learning_rate", "eps", "weight_decay", "swap"],
    "train_dataset": ["dataset_dir", "dataset_files", "shuffle", "repeat", "seed"],
    "model.model_config": ["type", "rope_parameters", "torch_dtype", "transformers_version", "num_hidden_layers"],
}

OPEN_SECTIONS = ["lr_schedule", "train_dataset.data_loader", "metric", "processor", "moe_config", "grouped_lr_schedule"]
"""Sections whose keys depend on the class named in them: not checked."""


def collect_key_table() -> dict[str, Any]:
    """Return `{"sections": {dotted section: [keys]}, "open": [sections]}` for the installed MindFormers."""
    import mindformers
    from mindformers.tools.register.template import CONFIG_NAME_TO_CLASS

    sections: dict[str, set[str]] = {section: set(keys) for section, keys in EXTRA_KEYS.items()}
    for name, template in CONFIG_NAME_TO_CLASS.items():
        if name == "general_config":
            sections.setdefault("", set()).update(template.keys())
        else:
            sections[""].add(name)
            if name not in OPEN_SECTIONS and not name.endswith("callbacks"):
                sections.setdefault(name, set()).update(template.keys())
    for path in sorted((Path(mindformers.__file__).resolve().parents[1] / "configs").rglob("*train*.yaml")):
        _add_yaml_keys(yaml.safe_load(path.read_text(encoding="utf-8")), "", sections)
    sections.setdefault("model", set()).update({"model_config", "arch", "type"})
    sections["model.model_config"].update(_collect_model_keys())
    table = {section: sorted(keys) for section, keys in sorted(sections.items()) if section not in OPEN_SECTIONS}
    return {
        "mindformers": mindformers.__version__,
        "sections": table,
        "open": sorted(OPEN_SECTIONS),
        "names": _collect_names(),
    }


def _collect_names() -> dict[str, list[str]]:
    """Return the class names that some sections accept for their `type` key."""
    import mindformers.core.optim
    import mindformers.wrapper  # noqa: F401
    from mindformers.tools.register import MindFormerModuleType, MindFormerRegister

    modules = {"optimizer.type": MindFormerModuleType.OPTIMIZER, "runner_wrapper.type": MindFormerModuleType.WRAPPER}
    return {dotted: sorted(MindFormerRegister.registry[module]) for dotted, module in modules.items()}


def _add_yaml_keys(node: Any, section: str, sections: dict[str, set[str]]) -> None:
    if not isinstance(node, dict) or section in OPEN_SECTIONS or section.count(".") > 1:
        return
    sections.setdefault(section, set()).update(str(key) for key in node)
    for key, value in node.items():
        _add_yaml_keys(value, f"{section}.{key}" if section else str(key), sections)


def _collect_model_keys() -> set[str]:
    from mindformers.models.qwen3.config_converter_qwen3 import Qwen3ConfigConverter
    from mindformers.models.qwen3.configuration_qwen3 import Qwen3Config
    from mindformers.models.qwen3_moe.config_converter_qwen3_moe import Qwen3MoeConfigConverter
    from mindformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
    from mindformers.parallel_core.config_converter import ConfigLogHandler
    from mindformers.parallel_core.transformer_config_utils import DEFAULT_WHITE_KEY

    keys = set(DEFAULT_WHITE_KEY)
    for converter in (Qwen3ConfigConverter, Qwen3MoeConfigConverter):
        keys.update(converter._get_final_mapping(ConfigLogHandler()))
    for config in (Qwen3Config, Qwen3MoeConfig):
        keys.update(inspect.signature(config.__init__).parameters)
    keys.update({"model_type", "architectures", "pad_token_id", "bos_token_id", "eos_token_id"})
    return keys - {"self", "kwargs"}


def write_key_table(path: Path = KEY_TABLE_PATH) -> None:
    """Write the key table of the installed MindFormers to `path`."""
    path.write_text(json.dumps(collect_key_table(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_key_table()
