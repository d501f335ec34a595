"""A network for inference, built by MindFormers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from mindformers import build_context
from mindformers.models.build_model import build_network
from mindformers.tools.register import MindFormerConfig
from mindspore import Tensor, nn
from numpy.typing import NDArray

from ascend_cpt.backend.cpu import install_cpu_kernels
from ascend_cpt.backend.models import register_models
from ascend_cpt.model.sizes import select_model_fields

_NO_PADDING = -1


class InferenceNetwork:
    """Computes logits for token sequences of a fixed length. Load weights into `cell` before use.

    Args:
        config: The model's Hugging Face configuration.
        length: Tokens per sequence. Shorter ones are padded at the end; earlier tokens do not attend to the padding.
        device: `CPU` or `Ascend`.
        compute_dtype: Dtype of the parameters and the computation, e.g. "float32".
    """

    def __init__(
        self, config: Mapping[str, Any], *, length: int, device: str = "CPU", compute_dtype: str = "float32"
    ) -> None:
        self.length = length
        if device == "CPU":
            install_cpu_kernels()
        register_models()
        context = {"mode": 0, "device_target": device, "device_id": 0}
        build_context(MindFormerConfig(use_legacy=False, use_parallel=False, run_mode="train", context=context))
        settings: dict[str, Any] = {
            "seq_length": length,
            "pad_token_id": _NO_PADDING,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
            "params_dtype": compute_dtype,
            "compute_dtype": compute_dtype,
            "layernorm_compute_dtype": "float32",
            "rotary_dtype": "float32",
        }
        self.cell: nn.Cell = build_network(MindFormerConfig(model_config={**select_model_fields(config), **settings}))
        self.cell.set_train(False)

    def compute_logits(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        """Return the logits (batch, given length, vocab) of `tokens` (batch, at most `length`)."""
        batch, given = tokens.shape
        filled = np.zeros((batch, self.length), np.int32)
        filled[:, :given] = tokens
        logits: NDArray[np.float32] = self.cell(Tensor(filled)).asnumpy()
        return logits.reshape(batch, self.length, -1)[:, :given]
