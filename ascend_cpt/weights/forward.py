"""A NumPy forward pass for the supported decoders, to check converted weights without torch and to generate text.

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


class CachedDecoder:
    """Computes the logits of one position after another, and keeps the keys and values of earlier positions.

    Args:
        sizes: The model.
        read: Returns a tensor as float32; it is called again for every position, so the tensors must be in memory.
        batch_size: Number of sequences.
        max_length: Largest number of positions.
    """

    def __init__(self, sizes: ModelSizes, read: Reader, *, batch_size: int, max_length: int) -> None:
        self._sizes, self._read, self.length = sizes, read, 0
        shape = (sizes.num_layers, batch_size, sizes.num_kv_heads, max_length, sizes.head_dim)
        self._keys, self._values = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self._frequencies = compute_inverse_frequencies(sizes.rope, sizes.head_dim)

    def keep(self, rows: NDArray[np.integer]) -> None:
        """Continue only with these sequences, in this order."""
        self._keys, self._values = self._keys[:, rows], self._values[:, rows]

    def compute_logits(self, tokens: NDArray[np.integer]) -> Floats:
        """Append one token to each sequence (batch,) and return the logits for the next ones (batch, vocab)."""
        sizes, read = self._sizes, self._read
        embedding = read(HF_EMBEDDING)
        hidden = embedding[tokens][:, None]
        angles = np.float32(self.length) * self._frequencies[None]
        rotation = np.cos(angles), np.sin(angles)
        for layer in range(sizes.num_layers):
            prefix = f"model.layers.{layer}."

            def read_layer(name: str, prefix: str = prefix) -> Floats:
                return read(prefix + name)

            normed = _norm(hidden, read_layer("input_layernorm.weight"), sizes)
            query, key, value = _project(sizes, read_layer, normed, rotation)
            self._keys[layer, :, :, self.length : self.length + 1] = key
            self._values[layer, :, :, self.length : self.length + 1] = value
            stop = self.length + 1
            mixed = _mix_values(sizes, query, self._keys[layer, :, :, :stop], self._values[layer, :, :, :stop])
            hidden = hidden + mixed @ read_layer("self_attn.o_proj.weight").T
            normed = _norm(hidden, read_layer("post_attention_layernorm.weight"), sizes)
            hidden = hidden + (
                _mlp(read_layer, "mlp", normed) if sizes.experts is None else _mix(sizes.experts, read_layer, normed)
            )
        self.length += 1
        hidden = _norm(hidden[:, 0], read("model.norm.weight"), sizes)
        logits: Floats = hidden @ (embedding if sizes.tie_word_embeddings else read(HF_OUTPUT)).T
        return logits


def _norm(x: Floats, weight: Floats, sizes: ModelSizes) -> Floats:
    scaled: Floats = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(sizes.rms_norm_eps)) * weight
    return scaled


def _attend(sizes: ModelSizes, read: Reader, x: Floats, rotation: tuple[Floats, Floats]) -> Floats:
    length = x.shape[1]
    mask = np.triu(np.ones((length, length), dtype=bool), k=1)
    mixed = _mix_values(sizes, *_project(sizes, read, x, rotation), mask)
    attended: Floats = mixed @ read("self_attn.o_proj.weight").T
    return attended


def _project(
    sizes: ModelSizes, read: Reader, x: Floats, rotation: tuple[Floats, Floats]
) -> tuple[Floats, Floats, Floats]:
    """Return the rotated queries and keys, and the values, each (batch, heads, length, head_dim)."""
    batch, length, _ = x.shape

    def project(name: str) -> Floats:
        projected = x @ read(f"self_attn.{name}.weight").T
        if sizes.has_qkv_bias:
            projected += read(f"self_attn.{name}.bias")
        by_head: Floats = projected.reshape(batch, length, -1, sizes.head_dim).swapaxes(1, 2)
        return by_head

    query, key, value = project("q_proj"), project("k_proj"), project("v_proj")
    if sizes.family in ("qwen3", "qwen3_moe"):
        query = _norm(query, read("self_attn.q_norm.weight"), sizes)
        key = _norm(key, read("self_attn.k_norm.weight"), sizes)
    return _rotate(query, rotation), _rotate(key, rotation), value


def _mix_values(
    sizes: ModelSizes, query: Floats, key: Floats, value: Floats, mask: NDArray[np.bool_] | None = None
) -> Floats:
    """Return the attention over keys and values (batch, length, heads × head_dim); masked pairs are excluded."""
    num_repeats = sizes.num_heads // sizes.num_kv_heads
    key, value = np.repeat(key, num_repeats, axis=1), np.repeat(value, num_repeats, axis=1)
    scores = query @ key.swapaxes(-1, -2) / np.float32(np.sqrt(sizes.head_dim))
    if mask is not None:
        scores[..., mask] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    batch, _, length, _ = query.shape
    mixed: Floats = (weights @ value).swapaxes(1, 2).reshape(batch, length, -1)
    return mixed


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
