"""One table per model family that maps Hugging Face tensors to MindFormers tensors, with their shapes.

`{}` is the layer number, and `{expert}` the number of an expert. Both directions of the conversion, the checks of names
and shapes, and the loading of Hugging Face weights by MindFormers are derived from these tables.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ascend_cpt.model.sizes import Experts, ModelSizes
from ascend_cpt.model.tensor_layout import GroupedQkv, InterleavedRows, Shape, StackedExperts, TensorLayout, Unchanged

HF_OUTPUT = "lm_head.weight"
HF_EMBEDDING = "model.embed_tokens.weight"
_EMBEDDING, _OUTPUT = "embedding.word_embeddings.weight", "output_layer.weight"
# Tensors with one row per token of the vocabulary, by their names in both formats.
VOCABULARY_TENSORS = {HF_OUTPUT, HF_EMBEDDING, _EMBEDDING, _OUTPUT}

_ROUTER_STATE = (".mlp.router.fi_accu", ".mlp.router.load_sum", ".mlp.router.loss_sums")


def is_router_state(name: str) -> bool:
    """Return whether a MindFormers tensor is a router's sum over micro batches, which is saved but is not a weight."""
    return name.endswith(_ROUTER_STATE)


def _get_experts(sizes: ModelSizes) -> Experts:
    assert sizes.experts is not None
    return sizes.experts


# Names of dimensions in the tables.
_DIMENSIONS: dict[str, Callable[[ModelSizes], int]] = {
    "vocab": lambda sizes: sizes.vocab_size,
    "hidden": lambda sizes: sizes.hidden_size,
    "mlp": lambda sizes: sizes.intermediate_size,
    "queries": lambda sizes: sizes.num_heads * sizes.head_dim,
    "keys": lambda sizes: sizes.num_kv_heads * sizes.head_dim,
    "head": lambda sizes: sizes.head_dim,
    "experts": lambda sizes: _get_experts(sizes).num_experts,
    "expert_mlp": lambda sizes: _get_experts(sizes).intermediate_size,
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One entry of a table: the MindFormers tensor, its Hugging Face parts as (name, dimensions), and the layout."""

    mindformers: str
    hf: tuple[tuple[str, str], ...]
    layout: TensorLayout = field(default_factory=Unchanged)

    @property
    def is_per_layer(self) -> bool:
        return "{}" in self.mindformers

    @property
    def is_per_expert(self) -> bool:
        return "{expert}" in self.hf[0][0]

    def list_hf_names(self, sizes: ModelSizes, layer: int | None) -> list[str]:
        """Return the name of each part. Parts of experts are in expert order."""
        experts = range(_get_experts(sizes).num_experts) if self.is_per_expert else (0,)
        return [name.format(layer, expert=expert) for expert in experts for name, _ in self.hf]

    def list_hf_shapes(self, sizes: ModelSizes) -> list[Shape]:
        """Return the shape of each part."""
        shapes = [tuple(_DIMENSIONS[name](sizes) for name in dimensions.split()) for _, dimensions in self.hf]
        return shapes * (_get_experts(sizes).num_experts if self.is_per_expert else 1)


_LAYER = "model.layers.{}."
_DECODER = "decoder.layers.{}."


def _rename(hf: str, mindformers: str, dimensions: str) -> Row:
    return Row(mindformers=mindformers, hf=((hf, dimensions),))


_LLAMA = (
    _rename(HF_EMBEDDING, _EMBEDDING, "vocab hidden"),
    _rename(f"{_LAYER}input_layernorm.weight", f"{_DECODER}input_layernorm.weight", "hidden"),
    Row(
        mindformers=f"{_DECODER}self_attention.linear_qkv.weight",
        hf=(
            (f"{_LAYER}self_attn.q_proj.weight", "queries hidden"),
            (f"{_LAYER}self_attn.k_proj.weight", "keys hidden"),
            (f"{_LAYER}self_attn.v_proj.weight", "keys hidden"),
        ),
        layout=GroupedQkv(),
    ),
    _rename(f"{_LAYER}self_attn.o_proj.weight", f"{_DECODER}self_attention.linear_proj.weight", "hidden queries"),
    _rename(f"{_LAYER}post_attention_layernorm.weight", f"{_DECODER}pre_mlp_layernorm.weight", "hidden"),
    Row(
        mindformers=f"{_DECODER}mlp.linear_fc1.weight",
        hf=((f"{_LAYER}mlp.gate_proj.weight", "mlp hidden"), (f"{_LAYER}mlp.up_proj.weight", "mlp hidden")),
        layout=InterleavedRows(),
    ),
    _rename(f"{_LAYER}mlp.down_proj.weight", f"{_DECODER}mlp.linear_fc2.weight", "hidden mlp"),
    _rename("model.norm.weight", "decoder.final_layernorm.weight", "hidden"),
    _rename(HF_OUTPUT, _OUTPUT, "vocab hidden"),
)

_QWEN3 = (
    *_LLAMA,
    _rename(f"{_LAYER}self_attn.q_norm.weight", f"{_DECODER}self_attention.q_layernorm.weight", "head"),
    _rename(f"{_LAYER}self_attn.k_norm.weight", f"{_DECODER}self_attention.k_layernorm.weight", "head"),
)

_EXPERT = f"{_LAYER}mlp.experts.{{expert}}."
_QWEN3_MOE = (
    *(row for row in _QWEN3 if ".mlp." not in row.mindformers),
    _rename(f"{_LAYER}mlp.gate.weight", f"{_DECODER}mlp.router.weight", "experts hidden"),
    Row(
        mindformers=f"{_DECODER}mlp.experts.weight1",
        hf=((f"{_EXPERT}gate_proj.weight", "expert_mlp hidden"), (f"{_EXPERT}up_proj.weight", "expert_mlp hidden")),
        layout=StackedExperts(2),
    ),
    Row(
        mindformers=f"{_DECODER}mlp.experts.weight2",
        hf=((f"{_EXPERT}down_proj.weight", "hidden expert_mlp"),),
        layout=StackedExperts(1),
    ),
)

_QWEN2 = (
    *_LLAMA,
    Row(
        mindformers=f"{_DECODER}self_attention.linear_qkv.bias",
        hf=(
            (f"{_LAYER}self_attn.q_proj.bias", "queries"),
            (f"{_LAYER}self_attn.k_proj.bias", "keys"),
            (f"{_LAYER}self_attn.v_proj.bias", "keys"),
        ),
        layout=GroupedQkv(),
    ),
)

# model_type → name of the model class, the same in transformers and MindFormers.
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}

FAMILIES: dict[str, tuple[Row, ...]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _QWEN2,
    "qwen3": _QWEN3,
    "qwen3_moe": _QWEN3_MOE,
}
