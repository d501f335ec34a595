"""A NumPy forward pass for the supported decoders, for checking converted weights without torch.

It implements the published architecture (RMSNorm, rotary embedding on half-split pairs, grouped-query causal attention,
gated MLP or experts) in float32 and reads the weights layer by layer by their Hugging Face names. It is not optimized.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ascend_cpt.model.families import HF_EMBEDDING, HF_OUTPUT
from ascend_cpt.model.rope import compute_inverse_frequencies
from ascend_cpt.model.sizes import Experts, ModelSizes

Floats = NDArray[np.float32]
Reader = Callable[[str], Floats]


def compute_logits(sizes: ModelSizes, read: Reader, tokens: NDArray[np.integer]) -> Floats:
    """Return the logits (batch, length, vocab) for `tokens` (batch, length). `read` returns a tensor as float32."""
    embedding = read(HF_EMBEDDING)
    hidden = embedding[tokens]
    angles = np.arange(tokens.shape[1], dtype=np.float32)[:, None] * compute_inverse_frequencies(
        sizes.rope, sizes.head_dim
    )
    scaling = np.float32(sizes.rope.attention_scaling)
    rotation = np.cos(angles) * scaling, np.sin(angles) * scaling
    for layer in range(sizes.num_layers):
        prefix = f"model.layers.{layer}."

        def read_layer(name: str, prefix: str = prefix) -> Floats:
            return read(prefix + name)

        normed = _norm(hidden, read_layer("input_layernorm.weight"), sizes)
        hidden = hidden + _attend(sizes, read_layer, normed, rotation)
        normed = _norm(hidden, read_layer("post_attention_layernorm.weight"), sizes)
        hidden = hidden + (
            _mlp(read_layer, "mlp", normed) if sizes.experts is None else _mix(sizes.experts, read_layer, normed)
        )
    hidden = _norm(hidden, read("model.norm.weight"), sizes)
    output = embedding if sizes.tie_word_embeddings else read(HF_OUTPUT)
    logits: Floats = hidden @ output.T
    return logits


def _norm(x: Floats, weight: Floats, sizes: ModelSizes) -> Floats:
    scaled: Floats = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(sizes.rms_norm_eps)) * weight
    return scaled


def _attend(sizes: ModelSizes, read: Reader, x: Floats, rotation: tuple[Floats, Floats]) -> Floats:
    batch, length, _ = x.shape

    def project(name: str) -> Floats:
        """Return (batch, heads, length, head_dim)."""
        projected = x @ read(f"self_attn.{name}.weight").T
        if sizes.has_qkv_bias:
            projected += read(f"self_attn.{name}.bias")
        by_head: Floats = projected.reshape(batch, length, -1, sizes.head_dim).swapaxes(1, 2)
        return by_head

    query, key, value = project("q_proj"), project("k_proj"), project("v_proj")
    if sizes.family in ("qwen3", "qwen3_moe"):
        query = _norm(query, read("self_attn.q_norm.weight"), sizes)
        key = _norm(key, read("self_attn.k_norm.weight"), sizes)
    query, key = _rotate(query, rotation), _rotate(key, rotation)
    num_repeats = sizes.num_heads // sizes.num_kv_heads
    key, value = np.repeat(key, num_repeats, axis=1), np.repeat(value, num_repeats, axis=1)
    scores = query @ key.swapaxes(-1, -2) / np.float32(np.sqrt(sizes.head_dim))
    scores[..., np.triu(np.ones((length, length), dtype=bool), k=1)] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    mixed = (weights @ value).swapaxes(1, 2).reshape(batch, length, -1)
    attended: Floats = mixed @ read("self_attn.o_proj.weight").T
    return attended


def _rotate(x: Floats, rotation: tuple[Floats, Floats]) -> Floats:
    """Rotate the pairs (i, i + head_dim / 2) of `x` (batch, heads, length, head_dim) by their angles."""
    cos, sin = rotation
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _mlp(read: Reader, name: str, x: Floats) -> Floats:
    gate = x @ read(f"{name}.gate_proj.weight").T
    # For a large negative gate, exp overflows to infinity, and the quotient is correctly 0.
    with np.errstate(over="ignore"):
        activated = gate / (1 + np.exp(-gate)) * (x @ read(f"{name}.up_proj.weight").T)
    down: Floats = activated @ read(f"{name}.down_proj.weight").T
    return down


def _mix(experts: Experts, read: Reader, x: Floats) -> Floats:
    """Return the outputs of each token's most probable experts, weighted with the router's probabilities."""
    tokens = x.reshape(-1, x.shape[-1])
    scores = tokens @ read("mlp.gate.weight").T
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    chosen = np.argsort(-weights, axis=-1, kind="stable")[:, : experts.num_per_token]
    if experts.normalizes:
        weights /= np.take_along_axis(weights, chosen, axis=-1).sum(axis=-1, keepdims=True)
    mixed = np.zeros_like(tokens)
    for expert in range(experts.num_experts):
        (rows,) = np.nonzero((chosen == expert).any(axis=-1))
        if len(rows):
            mixed[rows] += weights[rows, expert, None] * _mlp(read, f"mlp.experts.{expert}", tokens[rows])
    return mixed.reshape(x.shape)
