"""Cases of small and published models, without a configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ascend_cpt.config.parallel_layout import ParallelLayout
from ascend_cpt.model.parameters import list_mindformers_shapes
from ascend_cpt.model.sizes import read_sizes
from ascend_cpt.plan.case import TrainingCase, split_layers

TINY = {
    "model_type": "qwen3",
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 64,
}


@pytest.fixture
def make_case() -> Callable[..., TrainingCase]:
    """Return a function that makes a case; `layout` is (data, tensor, pipeline, context), all layers recomputed."""

    def make(
        layout: tuple[int, int, int, int] = (2, 2, 2, 1),
        *,
        model: dict[str, Any] | None = None,
        recompute: bool = True,
        offset: list[int] | None = None,
        **changes: Any,
    ) -> TrainingCase:
        data, tensor, pipeline, context = layout
        sizes = read_sizes({**TINY, **(model or {})})
        layers = split_layers(sizes.num_layers, pipeline, offset)
        settings: dict[str, Any] = {
            "seq_length": 4096,
            "micro_batch_size": 1,
            "num_micro_batches": 4,
            "sequence_parallel": tensor > 1,
            **changes,
        }
        return TrainingCase(
            model=sizes,
            parameters=list_mindformers_shapes(sizes),
            layout=ParallelLayout(
                world_size=data * tensor * pipeline * context,
                data_parallel=data,
                tensor_parallel=tensor,
                pipeline_parallel=pipeline,
                context_parallel=context,
            ),
            layers_per_stage=layers,
            recomputed_layers=layers if recompute else (0,) * pipeline,
            **settings,
        )

    return make
