"""A model of the same family and similar proportions that trains in seconds on a laptop."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from ascend_cpt.config.parallel_layout import ParallelLayout
from ascend_cpt.plan.layout import MIN_COMPRESSED_SEQ_LENGTH, count_stage_parts
from ascend_cpt.run.document_attention import MIN_SEQ_LENGTH_ON_ASCEND

VOCAB_SIZE = 512
SEQ_LENGTH = 128
HEAD_DIM = 16
LAYERS_PER_STAGE = 2
MAX_KV_HEADS = 2
MAX_QUERIES_PER_KV_HEAD = 2
EOD_ID, PAD_ID = 0, 1
# In such a narrow model, random weights need this standard deviation so that logits differ between tokens.
INITIALIZER_RANGE = 0.06
NOT_IN_DATA = ("pad_token_id", "bos_token_id", "eos_token_id")


def choose_seq_length(model: Mapping[str, Any], *, within_documents: bool, seq_length: int) -> int:
    """Return the tokens per row: as few as the settings allow, at most the user's `seq_length`."""
    needed = SEQ_LENGTH
    if model.get("use_attn_mask_compression"):
        needed = MIN_COMPRESSED_SEQ_LENGTH
    if within_documents:
        needed = max(needed, MIN_SEQ_LENGTH_ON_ASCEND)
    return min(seq_length, needed)


def shrink_model(
    model: Mapping[str, Any], before: ParallelLayout, after: ParallelLayout, *, seq_lengths: tuple[int, int]
) -> dict[str, Any]:
    """Return the `model.model_config` for a small model.

    Args:
        model: The user's `model.model_config`.
        before: The user's layout.
        after: The rehearsal's layout.
        seq_lengths: Tokens per row before and after.
    """
    small = copy.deepcopy(dict(model))
    heads = int(model["num_attention_heads"])
    kv_heads = int(model.get("num_key_value_heads") or heads)
    tensor = after.tensor_parallel
    per_device = max(1, kv_heads // before.tensor_parallel)
    # Ulysses splits heads, so their number must be divisible by both dimensions.
    small_kv = tensor * min(per_device, max(1, MAX_KV_HEADS // tensor)) * after.context_parallel
    small_heads = small_kv * min(heads // kv_heads, MAX_QUERIES_PER_KV_HEAD)
    head_dim = model.get("head_dim")
    small["num_attention_heads"] = small_heads
    if model.get("num_key_value_heads") is not None:
        small["num_key_value_heads"] = small_kv
    if head_dim is not None:
        small["head_dim"] = HEAD_DIM
    width = small_heads * HEAD_DIM
    if head_dim is not None and int(head_dim) * heads != int(model["hidden_size"]):
        # Attention is not as wide as the model, so keep it that way.
        width = width // 2 if int(head_dim) * heads > int(model["hidden_size"]) else width * 2
    small.update(hidden_size=width, vocab_size=VOCAB_SIZE, initializer_range=INITIALIZER_RANGE)
    if model.get("intermediate_size") is not None:
        small["intermediate_size"] = 3 * width
    offset = model.get("offset")
    if "pp_interleave_num" in small:
        parts = min(count_stage_parts(small, after), LAYERS_PER_STAGE)
        small["pp_interleave_num"], offset = parts, offset if parts == 1 else 0
    small["num_hidden_layers"], offset = _shrink_layers(offset, after.pipeline_parallel)
    if "offset" in small:
        small["offset"] = offset
    for key in NOT_IN_DATA:
        small.pop(key, None)
    small.pop("seq_length", None)
    _shrink_positions(small, model, seq_lengths)
    return small


def _shrink_layers(offset: Any, num_stages: int) -> tuple[int, Any]:
    """Return the layers and each stage's offset. An uneven split remains uneven."""
    layers = LAYERS_PER_STAGE * num_stages
    if not isinstance(offset, list):
        return layers, offset
    if num_stages == 1 or not any(isinstance(extra, int) and extra for extra in offset):
        return layers, [0] * num_stages if num_stages > 1 else 0
    first = next(extra for extra in offset if extra)
    extra = 1 if (first > 0) == (offset.index(first) < len(offset) / 2) else -1
    return layers, [extra, *[0] * (num_stages - 2), -extra]


def _shrink_positions(small: dict[str, Any], model: Mapping[str, Any], seq_lengths: tuple[int, int]) -> None:
    """Scale position lengths with the row length."""
    before, after = seq_lengths
    if model.get("max_position_embeddings") is not None:
        small["max_position_embeddings"] = max(after, int(model["max_position_embeddings"]) * after // before)
    for key in ("rope_scaling", "rope_parameters"):
        scaling = small.get(key)
        if isinstance(scaling, dict) and scaling.get("original_max_position_embeddings"):
            original = int(scaling["original_max_position_embeddings"])
            scaling["original_max_position_embeddings"] = max(8, original * after // before)
