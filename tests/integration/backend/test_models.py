"""Our models in MindFormers: registry, weight loader, defaults and refused settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ms = pytest.importorskip("mindspore")
pytest.importorskip("mindformers")

from mindformers import build_context
from mindformers.checkpoint.checkpoint import load_hf_checkpoint
from mindformers.models.build_config import get_model_config
from mindformers.models.build_model import build_network
from mindformers.models.utils import (
    convert_transformer_config_to_args_for_tflops,
    num_floating_point_operations,
)
from mindformers.tools.register import MindFormerConfig
from safetensors.numpy import load_file

from ascend_cpt.backend.cpu import install_cpu_kernels
from ascend_cpt.backend.models import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralForCausalLM,
    Qwen2ForCausalLM,
    register_models,
)
from ascend_cpt.errors import ConfigError
from ascend_cpt.model.parameters import list_mindformers_shapes
from ascend_cpt.model.sizes import read_sizes
from ascend_cpt.weights.mapping import to_mindformers

REFERENCE = Path(__file__).resolve().parents[2] / "reference"
MODELS = ["llama2", "llama31", "llama32_tied", "mistral", "qwen25_tied"]
CLASSES = {"llama": LlamaForCausalLM, "mistral": MistralForCausalLM, "qwen2": Qwen2ForCausalLM}


@pytest.fixture(scope="module", autouse=True)
def mindformers_context() -> None:
    install_cpu_kernels()
    register_models()
    context = {"mode": 0, "device_target": "CPU", "device_id": 0}
    build_context(MindFormerConfig(use_legacy=False, use_parallel=False, run_mode="train", context=context))


def read_config(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((REFERENCE / name / "config.json").read_text(encoding="utf-8"))
    return config


@pytest.mark.parametrize("name", MODELS)
def test_mindformers_builds_our_model_from_a_folder_and_loads_its_weights(name: str) -> None:
    folder = REFERENCE / name
    network = build_network(
        MindFormerConfig(pretrained_model_dir=str(folder), model_config={"params_dtype": "float32", "seq_length": 32})
    )
    sizes = read_sizes(read_config(name))
    assert type(network) is CLASSES[sizes.family]
    parameters = {parameter.name: parameter for parameter in network.get_parameters()}
    assert {key: parameter.shape for key, parameter in parameters.items()} == list_mindformers_shapes(sizes)
    load_hf_checkpoint(str(folder), network)
    for key, weight in to_mindformers(load_file(folder / "model.safetensors"), sizes).items():
        np.testing.assert_array_equal(parameters[key].asnumpy(), weight)


def test_parameters_and_flops_reported_to_mindformers() -> None:
    network = build_network(MindFormerConfig(model_config={**read_config("llama31"), "seq_length": 32}))
    names = {parameter.name for parameter in network.get_model_parameters()}
    assert names == set(list_mindformers_shapes(read_sizes(read_config("llama31"))))
    num_operations = num_floating_point_operations(
        convert_transformer_config_to_args_for_tflops(network.get_gpt_transformer_config()), 2
    )
    num_matrix_elements = 128 * 48 + 2 * (128 * 48 + 64 * 48 + 3 * 64 * 48)
    # Six FLOPs per weight and token for the matrix products, plus attention.
    assert 6 * num_matrix_elements * 2 * 32 < num_operations < 8 * num_matrix_elements * 2 * 32


def test_defaults_are_those_of_transformers() -> None:
    needed = ("model_type", "architectures", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    config = {key: read_config("llama2")[key] for key in (*needed, "num_attention_heads")}
    built = get_model_config(MindFormerConfig(model_config=config))
    assert isinstance(built, LlamaConfig)
    assert (built.head_dim, built.rope_theta, built.pad_token_id) == (12, 10000.0, -1)
    converted = built.convert_to_transformer_config()
    assert (converted.kv_channels, converted.num_query_groups, converted.add_qkv_bias) == (12, 4, False)
    assert (converted.hidden_act, converted.gated_linear_unit, converted.normalization) == ("silu", True, "RMSNorm")
    assert (converted.layernorm_epsilon, converted.init_method_std) == (1e-6, 0.02)
    assert (converted.hidden_dropout, converted.attention_dropout, converted.position_embedding_type) == (0, 0, "rope")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 4.0}}, "longrope"),
        ({"position_embedding_type": "learned_absolute"}, "position_embedding_type"),
        ({"normalization": "LayerNorm"}, "normalization"),
        ({"use_contiguous_weight_layout_attention": True}, "use_contiguous_weight_layout_attention"),
        ({"use_interleaved_weight_layout_mlp": False}, "use_interleaved_weight_layout_mlp"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"hiden_size": 64}, "hiden_size"),
        ({"qk_norm": True}, "qk_norm"),
    ],
)
def test_unsupported_settings_are_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        build_network(MindFormerConfig(model_config={**read_config("llama2"), **change}))


def test_boundary_mask_makes_documents_independent() -> None:
    network = build_network(
        MindFormerConfig(
            model_config={
                **read_config("llama31"),
                "seq_length": 32,
                "compute_dtype": "float32",
                "params_dtype": "float32",
                "layernorm_compute_dtype": "float32",
                "rotary_dtype": "float32",
            }
        )
    )
    load_hf_checkpoint(str(REFERENCE / "llama31"), network)
    network.set_train(False)
    tokens = np.random.default_rng(0).integers(0, 128, (2, 32)).astype(np.int32)
    boundary = 20
    # Row 0 has two documents; row 1 starts with the second. Only differences of rotary positions matter.
    tokens[1, : 32 - boundary] = tokens[0, boundary:]
    mask = np.broadcast_to(np.triu(np.ones((32, 32), np.uint8), k=1), (2, 1, 32, 32)).copy()
    mask[0, 0, boundary:, :boundary] = 1
    with_boundary = network(ms.Tensor(tokens), None, ms.Tensor(mask)).asnumpy().reshape(2, 32, 128)
    np.testing.assert_allclose(with_boundary[0, boundary:], with_boundary[1, : 32 - boundary], atol=1e-5)
    without = network(ms.Tensor(tokens)).asnumpy().reshape(2, 32, 128)
    np.testing.assert_allclose(without[1], with_boundary[1], atol=1e-5)
    assert np.abs(without[0, boundary:] - with_boundary[0, boundary:]).max() > 0.1
