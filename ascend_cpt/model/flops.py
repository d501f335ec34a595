"""A model's training FLOPs, used for the model FLOPs utilization (MFU) and training-time estimates."""

from __future__ import annotations

import math
from collections.abc import Collection

from ascend_cpt.model.parameters import list_mindformers_shapes
from ascend_cpt.model.sizes import ModelSizes

_EMBEDDING = "embedding.word_embeddings.weight"


def count_layer_matmul_parameters(sizes: ModelSizes) -> int:
    """Return the number of parameters in the matrices that compute a token in one decoder layer.

    These are the projections and SwiGLU. In a mixture of experts, they are the projections, the router and the SwiGLU
    of the token's experts.
    """
    attention = sizes.hidden_size * (2 * sizes.query_size + 2 * sizes.kv_size)
    if sizes.experts is None:
        return attention + 3 * sizes.hidden_size * sizes.intermediate_size
    chosen = 3 * sizes.experts.num_per_token * sizes.experts.intermediate_size
    return attention + sizes.hidden_size * (sizes.experts.num_experts + chosen)


def count_training_flops_per_token(sizes: ModelSizes, seq_length: int, frozen: Collection[str] = ()) -> float:
    """Return the training FLOPs per token: 6 × matrix parameters + 12 × layers × heads × head size × sequence length.

    Only decoder and output-layer matrices count, because the input embedding is a lookup without FLOPs.
    This is the formula for MFU in PaLM (Chowdhery et al. 2022, arXiv 2204.02311, appendix B): a multiply-add is 2
    FLOPs, the backward pass takes twice the FLOPs of the forward pass, attention covers the whole sequence (not half of
    it, as with a causal kernel), and recomputation is not counted. A frozen matrix has no weight gradient, which saves
    2 FLOPs per parameter. Adapters are not counted.

    Args:
        sizes: The sizes of the model.
        seq_length: Tokens in a row.
        frozen: MindFormers' names of the weights that are not trained.
    """
    matmul = sizes.num_layers * count_layer_matmul_parameters(sizes) + sizes.hidden_size * sizes.vocab_size
    saved = 2.0 * _count_frozen_matmul_parameters(sizes, frozen) if frozen else 0.0
    return 6.0 * matmul - saved + 12.0 * sizes.num_layers * sizes.query_size * seq_length


def _count_frozen_matmul_parameters(sizes: ModelSizes, frozen: Collection[str]) -> float:
    """Return the number of frozen parameters that compute a token. Of frozen experts, the token's are counted."""
    shapes = list_mindformers_shapes(sizes)
    lookup = set() if sizes.tie_word_embeddings else {_EMBEDDING}
    chosen = 1.0 if sizes.experts is None else sizes.experts.num_per_token / sizes.experts.num_experts
    return sum(
        math.prod(shapes[name]) * (chosen if ".experts." in name else 1.0)
        for name in set(frozen) - lookup
        if len(shapes[name]) == 2
    )
