"""Compiles a resolved run to a plain MindFormers YAML file, which is written to the run folder and loaded from there.

The file must be loaded by path, because only then does MindFormers fill in its defaults.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ascend_cpt.checkpoint.locate import Checkpoint
from ascend_cpt.config.parallel_layout import ParallelLayout, uses_cpu
from ascend_cpt.data.packed.network_inputs import RowFormat
from ascend_cpt.plan.layout import count_stage_parts
from ascend_cpt.run.resolved_run import ResolvedRun

LOADER_NAME = "CptPackedDataLoader"
SCHEDULE_NAME = "CptTableLR"

# Positions restart at document boundaries only on a CPU: on Ascend MindFormers' restart does not compile with several
# data-parallel ranks. There they continue, to the same effect: rotary attention uses only position differences.
BOUNDARY_SETTINGS: dict[str, dict[str, bool]] = {
    "none": {},
    "mask": {"use_eod_reset": True},
    "ends": {"use_eod_attn_mask_compression": True},
}

DATA_PARALLEL_MODE, SEMI_AUTO_PARALLEL_MODE = 0, 1  # parallel.parallel_mode


def make_mindformers_config(
    run: ResolvedRun, *, resume_from: Checkpoint | None, init_from: Path | None
) -> dict[str, Any]:
    """Return the MindFormers configuration of a run.

    Args:
        run: The resolved run.
        resume_from: A checkpoint from which to resume exactly, or None.
        init_from: A checkpoint folder from which only the weights are loaded, or None.
    """
    assert resume_from is None or init_from is None
    cpu = uses_cpu(run.config)
    sections = copy.deepcopy(run.config.mindformers)
    for key in ("train_dataset", "train_dataset_task", "callbacks", "load_checkpoint", "resume_training"):
        sections.pop(key, None)
    sections.update(
        seed=run.seed,
        output_dir=str(run.run_dir),
        run_mode="train",
        use_parallel=run.layout.world_size > 1,
        use_legacy=False,
        use_legacy_format=False,
        load_ckpt_format="safetensors",
        print_separate_loss=True,  # the loss of a mixture of experts is recorded without those of its routers
        resume_training=resume_from is not None,
        load_checkpoint=str((resume_from.folder if resume_from else init_from) or ""),
        callbacks=[{"type": "MFLossMonitor"}],
    )
    sections.setdefault("trainer", {"type": "CausalLanguageModelingTrainer", "model_name": run.model["model_type"]})
    runner = sections.setdefault("runner_config", {})
    runner.update(
        epochs=1,  # the loader yields the rows of the whole run, including repeated epochs over the data
        batch_size=run.budget.micro_batch_size,
        gradient_accumulation_steps=1 if run.layout.pipeline_parallel > 1 else run.budget.num_accumulation_steps,
        sink_mode=False if cpu else runner.get("sink_mode", True),
        sink_size=1,  # callbacks see every step
    )
    sections["parallel_config"] = _compile_parallel_config(run, sections.get("parallel_config") or {})
    parallel = _switch_interleaving(run, sections.get("parallel") or {})
    sections["parallel"] = compile_parallel(parallel, run.layout, run.row_format, cpu=cpu)
    columns = list(run.row_format.columns)
    dataset = {
        "data_loader": {"type": LOADER_NAME, **compile_loader(run)},
        "input_columns": columns,
        "construct_args_key": columns,
        "num_parallel_workers": 1,
        "drop_remainder": True,
        "python_multiprocessing": False,
        "numa_enable": False,
        "prefetch_size": 1,
    }
    sections["train_dataset"] = dataset
    sections["train_dataset_task"] = {"type": "CausalLanguageModelDataset", "dataset_config": copy.deepcopy(dataset)}
    if run.schedule is not None:
        sections["lr_schedule"] = {
            "type": SCHEDULE_NAME,
            **run.schedule.to_record(),
            "total_steps": run.schedule.total_steps,
        }
    model = sections["model"]["model_config"]
    model.update(compile_row_settings(run.row_format))
    model.pop("pet_config", None)  # the trainer freezes these weights, without MindFormers' adapters
    if run.layout.context_parallel > 1 and model.get("use_flash_attention") is None:
        # The model's own default is True, but MindFormers' check of context parallelism reads only the configuration.
        model["use_flash_attention"] = True
    return sections


def compile_loader(run: ResolvedRun) -> dict[str, Any]:
    """Return the arguments of the training data loader."""
    loader = {
        "manifests": [str(source.manifest.path) for source in run.sources],
        "digests": [source.manifest.digest for source in run.sources],
        "row_format": run.row_format.to_record(),
        "sample_order": run.order.to_record(),
    }
    return loader if run.ramp_step is None else {**loader, "ramp_step": run.ramp_step}


def _compile_parallel_config(run: ResolvedRun, section: dict[str, Any]) -> dict[str, Any]:
    layout = run.layout
    compiled = {
        **section,
        "data_parallel": layout.data_parallel,
        "model_parallel": layout.tensor_parallel,
        "pipeline_stage": layout.pipeline_parallel,
        "context_parallel": layout.context_parallel,
    }
    if layout.pipeline_parallel > 1:
        compiled["micro_batch_num"] = run.budget.num_accumulation_steps
    return compiled


def _switch_interleaving(run: ResolvedRun, section: dict[str, Any]) -> dict[str, Any]:
    """Return the user's `parallel` section with the switch without which MindFormers ignores `pp_interleave_num`."""
    if count_stage_parts(run.model, run.layout) == 1:
        return section
    return {**section, "pipeline_config": {**(section.get("pipeline_config") or {}), "pipeline_interleave": True}}


def compile_row_settings(row_format: RowFormat) -> dict[str, Any]:
    """Return the model settings that depend on the rows. The user must not set them."""
    return {
        # MindFormers' own default is 0.1.
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "seq_length": row_format.seq_length,
        # Padding must not be the end-of-document token: MindFormers masks the loss of padding tokens.
        "pad_token_id": row_format.pad_id,
        **BOUNDARY_SETTINGS[row_format.boundaries],
    }


def remove_boundary_settings(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model section from a resolved.yaml without its document-boundary settings."""
    names = {name for settings in BOUNDARY_SETTINGS.values() for name in settings}
    return {key: value for key, value in model.items() if key not in names}


def compile_parallel(
    section: dict[str, Any], layout: ParallelLayout, row_format: RowFormat, *, cpu: bool
) -> dict[str, Any]:
    """Return the `parallel` section for a layout, based on the user's section."""
    if cpu:
        return {"parallel_mode": DATA_PARALLEL_MODE, "gradients_mean": True, "enable_parallel_optimizer": False}
    data = layout.data_parallel
    defaults = {
        "parallel_mode": SEMI_AUTO_PARALLEL_MODE,
        "enable_alltoall": True,
        "search_mode": "sharding_propagation",
    }
    if layout.pipeline_parallel == 1 and data * layout.context_parallel == 1:
        # Nothing to shard. With gradient accumulation, MindFormers would use only one micro batch's gradients.
        section = {**section, "enable_parallel_optimizer": False}
    return {
        **defaults,
        **section,
        "full_batch": False,
        "dataset_strategy": [[data, *[1] * (rank - 1)] for rank in row_format.ranks],
    }


class _Dumper(yaml.SafeDumper):
    """Writes no anchors and aliases, for readability."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def render_yaml(sections: dict[str, Any], heading: str) -> str:
    """Return the configuration as YAML text that starts with `heading` as a comment."""
    body = yaml.dump(sections, Dumper=_Dumper, sort_keys=True, allow_unicode=True, width=120)
    return f"# {heading}\n{body}"
