"""Replaces the Ascend operators of MindFormers' mcore models with the CPU kernels."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any

import mindspore as ms
from mindformers.wrapper.wrapper import MFTrainOneStepCell

from ascend_cpt.backend.cpu import attention, experts, kernels, loss, optimizer, overflow, projections

logger = logging.getLogger(__name__)
_is_installed = False


def is_installed() -> bool:
    """Return whether `install_cpu_kernels` has run in this process."""
    return _is_installed


def install_cpu_kernels(*, keep_float16_cast: bool = False) -> None:
    """Set the device to CPU and replace the operators that have no CPU kernel.

    Call this before MindFormers' context and network are built. Calling it again only changes `keep_float16_cast`.

    Args:
        keep_float16_cast: keep MindFormers' cast of query, key and value to float16 before attention. By default, they
            stay in compute_dtype, as in a float32 reference.

    Raises:
        RuntimeError: when the process already runs on another device.
    """
    global _is_installed
    if ms.get_context("device_target") != "CPU":
        ms.set_device("CPU")
    attention.install(keep_float16_cast=keep_float16_cast)
    if _is_installed:
        return
    norm = _import("transformer.norm")
    replacements = (
        (norm, "FusedRMSNorm", norm.RMSNorm),
        (_import("base_models.common.embeddings.rotary_pos_embedding"), "Outer", kernels.Outer),
        (_import("transformer.flash_attention"), "FlashAttentionScore", kernels.FlashAttentionScore),
        (_import("tensor_parallel.layers").VocabParallelEmbedding, "embedding_func", kernels.look_up_embedding),
        (MFTrainOneStepCell, "start_overflow_check", overflow.start_overflow_check),
        (MFTrainOneStepCell, "get_overflow_status", overflow.get_overflow_status),
        (_import("base_models.gpt.gpt_model"), "CrossEntropyLoss", loss.make_loss),
        (_import("loss_func"), "_LogSoftmax", loss.LogSoftmax),
        (_import("loss_func"), "_NLLLoss", loss.TokenLosses),
        (_import("base_models.gpt.gpt_model"), "ColumnParallelLinear", projections.BatchFirstOutputLayer),
        (_import("base_models.gpt.gpt_layer_specs"), "MLPInterleaved", projections.SplitWeightMLP),
        (importlib.import_module("mindformers.core.optim.adamw"), "_adamw_opt", optimizer.adamw_update),
        (_import("transformer.moe.router"), "TopkExt", experts.TopK),
        (_import("base_models.gpt.moe_module_specs"), "FFNGroupedGEMM", experts.DenseExperts),
        _skip_parallel_groups(),
        _skip_core_binding(),
    )
    for owner, name, replacement in replacements:
        assert hasattr(owner, name), f"MindFormers has no {owner.__name__}.{name}"
        setattr(owner, name, replacement)
    _is_installed = True
    logger.info("CPU kernels installed (float16 cast in attention: %s)", keep_float16_cast)


def _import(name: str) -> Any:
    return importlib.import_module(f"mindformers.parallel_core.training_graph.{name}")


def _skip_parallel_groups() -> tuple[Any, str, Callable[..., None]]:
    """Skip the model-parallel groups in data-parallel mode, the only multi-worker mode on CPU.

    MindFormers resets data_parallel to 1 in this mode and then fails because the sizes do not multiply to the world
    size.
    """
    gpt_model = _import("base_models.gpt.gpt_model")
    upstream = gpt_model.initialize_model_parallel

    def initialize_model_parallel(**sizes: Any) -> None:
        if ms.get_auto_parallel_context("parallel_mode") != ms.ParallelMode.DATA_PARALLEL:
            upstream(**sizes)

    return gpt_model, "initialize_model_parallel", initialize_model_parallel


def _skip_core_binding() -> tuple[Any, str, Callable[..., None]]:
    """Bind cores only if the user configured binding. By default, all workers would share the same cores."""
    # The attribute `mindformers.core.context.build_context` is the function, not the module of that name.
    build_context = importlib.import_module("mindformers.core.context.build_context")
    upstream = build_context.set_ms_affinity

    def set_ms_affinity(affinity_config: Any, affinity_cpu_list: Any) -> None:
        if affinity_config or affinity_cpu_list:
            upstream(affinity_config, affinity_cpu_list)

    return build_context, "set_ms_affinity", set_ms_affinity
