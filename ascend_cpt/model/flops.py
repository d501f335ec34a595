"""Training FLOPs of a model, for the model FLOPs utilization (MFU) and for planned times."""

from __future__ import annotations

from ascend_cpt.model.sizes import ModelSizes


def count_layer_matmul_parameters(sizes: ModelSizes) -> int:
    """Return the parameters of one decoder layer that multiply a token's vector: projections and SwiGLU."""
    attention = sizes.hidden_size * (2 * sizes.query_size + 2 * sizes.kv_size)
    return attention + 3 * sizes.hidden_size * sizes.intermediate_size


def count_training_flops_per_token(sizes: ModelSizes, seq_length: int) -> float:
    """Return the FLOPs that training one token takes: 6 × matrix parameters + 12 × layers × heads × head size × length.

    The matrices are those of the layers and the output layer; the input embedding is a look-up and counts only where
    the output layer shares it. The formula of MFU in PaLM (Chowdhery et al. 2022, arXiv 2204.02311, appendix B): a
    multiply-add is 2 FLOPs, the backward pass takes twice the forward pass, attention covers the whole length (not half
    of it, as a causal kernel could), and recomputation does not count.
    """
    matmul = sizes.num_layers * count_layer_matmul_parameters(sizes) + sizes.hidden_size * sizes.vocab_size
    return 6.0 * matmul + 12.0 * sizes.num_layers * sizes.query_size * seq_length
