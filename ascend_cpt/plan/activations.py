"""Activation memory of MindFormers' decoder layer and loss, in bytes on one rank for one micro batch.

Notation: t: tokens; s: tokens per sequence-parallel rank; h: hidden size. Per tensor-parallel rank: q and k: widths of
the query and key heads; f: MLP width; v: share of the vocabulary. In a mixture of experts, every rank routes its s
tokens, and its experts compute c of them, counting a token once per chosen expert. c assumes equal loads.
"""

from __future__ import annotations

from ascend_cpt.plan.case import FLOAT32_BYTES, TrainingCase
from ascend_cpt.plan.slices import QUERY_NORM

# FlashAttention keeps the maximum and sum of every row of every head, eight float32 values each.
SOFTMAX_BYTES_PER_ROW = 2 * 8 * FLOAT32_BYTES
LOGITS_COPIES = 4  # float32: one-hot labels, log-softmax, and two temporaries computed from them

LOGITS_COPIES_OF_PART = 3  # with `cpt.loss_chunks`: log-softmax, one-hot labels, and one computed from them
ADDED_GRADIENTS = 2  # float32: a part's gradient of the output weight, and its sum with the previous parts'


def count_saved_bytes(case: TrainingCase, stage: int) -> int:
    """Return the bytes a stage keeps from forward to backward, over all micro batches in flight at its peak."""
    recomputed = min(case.recomputed_layers[stage], case.layers_per_stage[stage])
    kept = case.layers_per_stage[stage] - recomputed
    per_micro_batch = recomputed * _count_layer_input_bytes(case) + kept * count_layer_bytes(case)
    return int(per_micro_batch * count_micro_batches_in_flight(case, stage))


def count_micro_batches_in_flight(case: TrainingCase, stage: int) -> float:
    """Return the maximum number of micro batches in flight on a stage in the 1F1B schedule.

    With interleaving, the number is fractional, because a stage holds micro batches for parts of its layers.
    """
    stages, parts = case.num_stages, case.interleave
    if parts == 1:
        return min(case.num_micro_batches, stages - stage)
    in_flight = ((parts - 1) * stages + 2 * (stages - 1 - stage) + 1) / parts
    return min(case.num_micro_batches, in_flight)


def count_layer_bytes(case: TrainingCase) -> int:
    """Return the bytes that a layer keeps for its backward pass without recomputation."""
    width = _Widths(case)
    norm_inputs = 2 * width.s * width.h * FLOAT32_BYTES
    linear_inputs = (width.t + (width.t if case.model.experts is None else width.s)) * width.h * case.compute_bytes
    # The sum after attention and the output of the MLP's norm (MindFormers' transformer_layer.py).
    residuals = 2 * width.s * width.h * (FLOAT32_BYTES - case.compute_bytes) if case.residuals_in_float32 else 0
    query_key_norms = width.t * (width.q + width.k) * FLOAT32_BYTES if width.normalizes_query_key else 0
    attention = width.t * (3 * width.q + 2 * width.k) * case.compute_bytes
    softmax = width.t * width.heads * SOFTMAX_BYTES_PER_ROW
    return norm_inputs + residuals + linear_inputs + query_key_norms + attention + softmax + _count_mlp_bytes(case)


def _count_mlp_bytes(case: TrainingCase) -> int:
    """Return the bytes that a layer's MLP, or its router and experts, keep for the backward pass."""
    width = _Widths(case)
    if case.model.experts is None:
        mlp_copies = 3 if case.recomputes_selected else 4
        return mlp_copies * width.t * width.f * case.compute_bytes
    # The router's input, logits and probabilities are float32.
    router = width.s * (width.h + 2 * case.model.experts.num_experts) * FLOAT32_BYTES
    # The experts' inputs, gate and up (MindFormers recomputes SiLU), and the outputs before they are weighted.
    return router + width.c * (2 * width.h + 2 * width.f) * case.compute_bytes


def count_backward_bytes(case: TrainingCase, stage: int) -> int:
    """Return the peak memory of a stage's backward pass, including saved activations."""
    width = _Widths(case)
    saved = count_saved_bytes(case, stage)
    output_gradient = width.t * width.h * case.compute_bytes
    recomputed = min(case.recomputed_layers[stage], case.layers_per_stage[stage])
    kept = case.layers_per_stage[stage] - recomputed
    moments = []
    if kept:
        # A layer's tensors are freed as its gradients are computed.
        moments.append(saved + output_gradient + 2 * width.s * width.h * case.compute_bytes)
    if recomputed:
        # Recomputed layers come first in the stage, so the others have finished their backward pass and are freed.
        left = saved - kept * count_layer_bytes(case)
        inner = 2 * width.c * width.f * case.compute_bytes
        moments.append(left + output_gradient + inner + count_layer_bytes(case))
    return max(moments)


def count_loss_bytes(case: TrainingCase, stage: int) -> int:
    """Return the peak memory of the loss on the last stage."""
    width = _Widths(case)
    if case.loss_chunks > 1:
        return _count_chunked_loss_bytes(case) + _count_norm_outputs_bytes(case, stage)
    logits = LOGITS_COPIES * width.t * width.v * FLOAT32_BYTES
    final_norm = 2 * width.s * width.h * FLOAT32_BYTES + width.t * width.h * case.compute_bytes
    return logits + final_norm + _count_norm_outputs_bytes(case, stage) + _count_gathered_logits_bytes(case)


def _count_chunked_loss_bytes(case: TrainingCase) -> int:
    """Return the peak memory of a chunked loss, which occurs in the last part's backward pass."""
    width = _Widths(case)
    logits = width.t // case.loss_chunks * width.v
    weight = width.v * width.h
    # The sum of the weight gradients over the previous parts, and this part's logits.
    elementwise = (weight + LOGITS_COPIES_OF_PART * logits) * FLOAT32_BYTES
    # This part's gradient, in compute_dtype and float32, is added to the sum.
    summing = (1 + ADDED_GRADIENTS) * weight * FLOAT32_BYTES + logits * case.compute_bytes
    final_norm = 2 * width.s * width.h * FLOAT32_BYTES
    hidden = 2 * width.t * width.h * case.compute_bytes  # for all parts, and their gradients
    return max(elementwise, summing) + final_norm + hidden


def _count_gathered_logits_bytes(case: TrainingCase) -> int:
    """Return the bytes of gathered logits. Rows sharded by data and context parallelism are gathered for flattening."""
    parts = case.layout.context_parallel
    if parts == 1 or case.layout.data_parallel == 1:
        return 0
    width = _Widths(case)
    return (2 * parts + 2) * width.t * width.v * case.compute_bytes


def _count_norm_outputs_bytes(case: TrainingCase, stage: int) -> int:
    """Return the bytes of float32 norm outputs kept until the end of the forward pass with gradient accumulation."""
    if not case.accumulates:
        return 0
    width = _Widths(case)
    normalized = 2 * width.s * width.h + (width.t * (width.q + width.k) if width.normalizes_query_key else 0)
    kept = case.layers_per_stage[stage] - min(case.recomputed_layers[stage], case.layers_per_stage[stage])
    return kept * normalized * FLOAT32_BYTES


def _count_layer_input_bytes(case: TrainingCase) -> int:
    width = _Widths(case)
    return width.s * width.h * case.compute_bytes


class _Widths:
    """Sizes on one rank, in the module's notation."""

    def __init__(self, case: TrainingCase) -> None:
        model, tensor = case.model, case.layout.tensor_parallel
        self.t = case.tokens_per_rank
        self.s = self.t // tensor if case.sequence_parallel else self.t
        self.h = model.hidden_size
        self.q = model.query_size // tensor
        self.k = model.kv_size // tensor
        self.f, self.c = model.intermediate_size // tensor, self.t
        if model.experts is not None:
            self.f, self.c = model.experts.intermediate_size, self.s * model.experts.num_per_token
        self.v = model.vocab_size // tensor
        self.heads = model.num_heads // tensor
        self.normalizes_query_key = QUERY_NORM in case.parameters
