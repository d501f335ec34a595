"""An evaluation-only network: no optimizer or pipeline stages, and it loads checkpoints saved in any layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mindformers import build_context
from mindformers.checkpoint.checkpoint import load_checkpoint, load_hf_checkpoint
from mindformers.core.parallel_config import build_parallel_config
from mindformers.models.build_model import build_network
from mindformers.tools.register import MindFormerConfig
from mindformers.wrapper.wrapper import DataOrderWrapperCell
from mindspore.parallel.strategy import enable_save_strategy_online

from ascend_cpt.backend.checkpointing.header_metadata import use_checked_shard_maps, use_headers
from ascend_cpt.backend.collectives import is_pure_data_parallel
from ascend_cpt.backend.cpu import install_cpu_kernels
from ascend_cpt.backend.inference.load_weights import load_hf, load_trained
from ascend_cpt.backend.models import register_models
from ascend_cpt.backend.models.chunked_loss import chunk_loss
from ascend_cpt.backend.training.row_scorer import RowScorer
from ascend_cpt.backend.training.trainer import get_data_rank
from ascend_cpt.config.parallel_layout import ParallelLayout
from ascend_cpt.data.packed.network_inputs import RowFormat
from ascend_cpt.errors import CheckpointError
from ascend_cpt.model.parameters import list_mindformers_shapes
from ascend_cpt.model.sizes import read_sizes
from ascend_cpt.run.checks.loss_chunks import find_keys_without_chunks
from ascend_cpt.run.mindformers_yaml import compile_parallel, compile_row_settings
from ascend_cpt.run.trained_model import open_trained
from ascend_cpt.weights.hf_folder import is_hf_folder, open_checked
from ascend_cpt.weights.sources import TensorSource

MAX_LOGITS_TOKENS = 4096
"""Tokens on a device whose logits may exist at the same time."""


class EvaluationNetwork:
    """Scores rows with weights from checkpoints, which are loaded one after another.

    Args:
        model_config: The model section of a MindFormers configuration, including the compute dtypes.
        row_format: How rows become network inputs.
        layout: Data and tensor parallelism, or only data parallelism on a CPU.
        device: `CPU` or `Ascend`.
        rank: This process's rank.
        context: Additional settings for MindFormers' `context` section.
    """

    def __init__(
        self,
        model_config: Mapping[str, Any],
        *,
        row_format: RowFormat,
        layout: ParallelLayout,
        device: str,
        rank: int,
        context: Mapping[str, Any] | None = None,
    ) -> None:
        self._format, self._layout, self._model = row_format, layout, model_config
        sections = _make_sections(model_config, row_format, layout, device, context or {})
        if device == "CPU":
            install_cpu_kernels()
        else:
            from ascend_cpt.backend.training.kernel_order import keep_kernel_order

            keep_kernel_order(sections["context"])
        register_models()
        config = MindFormerConfig(**sections)
        build_context(config)
        build_parallel_config(config)
        use_headers()
        use_checked_shard_maps()
        enable_save_strategy_online()  # as in MindFormers' trainer, whose loaders read the layouts
        self._network: Any = build_network(
            config.model, default_args={"parallel_config": config.parallel_config, "moe_config": config.moe_config}
        )
        if (chunks := count_loss_chunks(row_format, model_config)) > 1:
            chunk_loss(self._network, chunks)
        if device == "CPU":
            for _, cell in self._network.cells_and_names():
                cell.no_inline = False  # with several processes, MindSpore cannot run cells that are inlined late
        self._cell = DataOrderWrapperCell(list(row_format.columns), self._network)
        self.scorer = RowScorer(
            self._cell,
            row_format=row_format,
            layout=layout,
            num_micro_batches=1,
            data_rank=get_data_rank(layout, rank),
            gives_loss=True,
        )
        self._is_compiled = False

    def load(self, path: Path) -> None:
        """Load the weights of a Hugging Face folder, a run (its newest step) or a checkpoint.

        The caller verifies the files' checksums, so that the processes can share this work.

        Raises:
            CheckpointError: when the weights are missing, damaged or from another model.
        """
        if is_pure_data_parallel() or self._layout.world_size == 1:
            if is_hf_folder(path):
                load_hf(self._network, path)
            else:
                load_trained(self._network, open_trained(path, verify=False).source)
            return
        if not self._is_compiled:
            # MindFormers' loaders read the shards' layouts, which exist once a graph is compiled.
            self.scorer.sum([np.zeros(self._format.seq_length + 1, np.int32)])
            self._is_compiled = True
        network = self.scorer.cell
        if is_hf_folder(path):
            open_checked(path, self._model)
            load_hf_checkpoint(pretrained_model_dir=str(path), network=network)
        else:
            trained = open_trained(path, verify=False)
            if trained.adapters is not None:
                raise CheckpointError(
                    f"{path}: has only adapters, which cannot be merged in memory in this layout; export the run with "
                    "tools/convert_weights.py to-hf --merge, and evaluate the exported folder"
                )
            _check_shapes(trained.source, self._model)
            load_checkpoint(checkpoint=str(trained.origins[0]), network=network)


def count_loss_chunks(row_format: RowFormat, model_config: Mapping[str, Any]) -> int:
    """Return the parts in which the loss is computed: a power of 2 that divides the rows."""
    chunks = 1
    if find_keys_without_chunks({"model": {"model_config": model_config}}):
        return chunks
    while (
        row_format.micro_batch_size * row_format.seq_length > chunks * MAX_LOGITS_TOKENS
        and row_format.seq_length % (2 * chunks) == 0
    ):
        chunks *= 2
    return chunks


def _check_shapes(source: TensorSource, model_config: Mapping[str, Any]) -> None:
    """Raise CheckpointError if a weight is missing or has the wrong shape, which MindFormers would only log."""
    expected = list_mindformers_shapes(read_sizes(model_config))
    wrong = sorted(name for name, shape in expected.items() if source.tensors.get(name) is None or
                   tuple(source.tensors[name].shape) != tuple(shape))  # fmt: skip
    if wrong:
        raise CheckpointError(
            f"{source.path}: {wrong[0]} is missing or does not have the configured shape (weights affected: "
            f"{len(wrong)}); give the configuration that the checkpoint was trained with"
        )


def _make_sections(
    model_config: Mapping[str, Any],
    row_format: RowFormat,
    layout: ParallelLayout,
    device: str,
    context: Mapping[str, Any],
) -> dict[str, Any]:
    section = {"enable_parallel_optimizer": False}
    return {
        "use_legacy": False,
        "run_mode": "train",
        "use_parallel": layout.world_size > 1,
        "context": {"mode": 0, "jit_config": {"jit_level": "O0"}, "device_target": device, **context},
        "parallel": compile_parallel(section, layout, row_format, cpu=device == "CPU"),
        "parallel_config": {
            "data_parallel": layout.data_parallel,
            "model_parallel": layout.tensor_parallel,
            "pipeline_stage": 1,
            "context_parallel": 1,
            "use_seq_parallel": layout.tensor_parallel > 1,
            "vocab_emb_dp": False,
        },
        "model": {"model_config": {**model_config, **compile_row_settings(row_format)}},
    }
