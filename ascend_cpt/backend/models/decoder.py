"""A decoder built from a DecoderConfig on MindFormers' mcore GPTModel."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import mindspore as ms
from mindformers.models.modeling_utils import PreTrainedModel
from mindformers.parallel_core.training_graph.base_models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from mindformers.parallel_core.training_graph.base_models.gpt.gpt_model import GPTModel
from mindformers.parallel_core.utils.model_mixin import ModelMixin, TrainModelMixin
from mindformers.parallel_core.utils.spec_utils import ModuleSpec
from mindspore import Tensor

from ascend_cpt.backend.models.config import DecoderConfig
from ascend_cpt.backend.models.convert_ops import DecoderTemplate, make_convert_ops
from ascend_cpt.model.rope import compute_inverse_frequencies
from ascend_cpt.model.sizes import ModelSizes


class DecoderForCausalLM(TrainModelMixin, PreTrainedModel, ModelMixin):
    """Base class of the model families. MindFormers builds the subclasses.

    The inputs are the same as for GPTModel: int32 input_ids and labels (batch, seq_length), labels already shifted. In
    training, it returns four losses: the first is the language model's, the third the routers' in a mixture of experts,
    and the others are zero. Otherwise, it returns the
    float32 logits (batch * seq_length, vocab_size).
    """

    base_model_prefix: ClassVar[str] = "model"
    normalizes_queries: ClassVar[bool] = False
    """Whether queries and keys are normalized, as in Qwen3."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config, auto_prefix=False)
        transformer_config = self.convert_to_transformer_config(config)
        sizes = config.sizes
        layer = get_gpt_layer_local_spec(
            num_experts=transformer_config.num_moe_experts,
            moe_grouped_gemm=True,
            qk_layernorm=self.normalizes_queries,
        )
        _scale_attention(layer, sizes)
        self.model = GPTModel(
            config=transformer_config,
            transformer_layer_spec=layer,
            vocab_size=transformer_config.vocab_size,
            max_sequence_length=transformer_config.max_position_embeddings,
            position_embedding_type=transformer_config.position_embedding_type,
            rotary_base=config.rope_theta,
            share_embeddings_and_output_weights=config.tie_word_embeddings,
            post_process=transformer_config.post_process,
        )
        # GPTModel hard-codes one set of Llama 3.1 scaling factors; use the configured ones instead.
        frequencies = compute_inverse_frequencies(sizes.rope, sizes.head_dim)
        self.model.rotary_pos_emb.inv_freq = Tensor(frequencies, ms.float32)
        # Used by MindFormers' `load_hf_checkpoint`.
        self.template = DecoderTemplate(weight_converters=make_convert_ops(config.model_type))
        self.template.set_model_config(transformer_config)

    def construct(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input: Tensor | None = None,
        labels: Tensor | None = None,
        extra_block_kwargs: dict[str, Any] | None = None,
        prefix_keys_values: Tensor | None = None,
        loss_mask: Tensor | None = None,
        actual_seq_len: Tensor | None = None,
    ) -> Any:
        return self.model(
            input_ids,
            position_ids,
            attention_mask,
            decoder_input,
            labels,
            extra_block_kwargs,
            prefix_keys_values,
            loss_mask,
            actual_seq_len,
        )


def _scale_attention(layer: ModuleSpec, sizes: ModelSizes) -> None:
    """Apply the rope's attention factor, whose square scales the products of queries and keys, to the softmax.

    All dimensions of a head are rotated (`read_sizes`), so this is the same as scaling the cosines and sines.
    """
    factor = sizes.rope.attention_scaling
    if factor == 1.0:
        return
    attention = layer.submodules.self_attention.submodules
    scale = factor**2 / math.sqrt(sizes.head_dim)
    attention.core_attention = ModuleSpec(module=attention.core_attention, params={"softmax_scale": scale})
