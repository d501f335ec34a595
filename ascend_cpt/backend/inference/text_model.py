"""A model with its tokenizer, which together complete text."""

from __future__ import annotations

from pathlib import Path

from ascend_cpt.backend.inference.load_weights import load_hf, load_trained
from ascend_cpt.backend.inference.network import InferenceNetwork
from ascend_cpt.backend.inference.sampling import Sampling, generate
from ascend_cpt.data.tokenizing.files import open_tokenizer
from ascend_cpt.data.tokenizing.reference_engines import make_reference_engine
from ascend_cpt.errors import DataError
from ascend_cpt.model.sizes import read_attention_window, read_config
from ascend_cpt.run.trained_model import open_trained
from ascend_cpt.weights.hf_folder import is_hf_folder


class TextModel:
    """Completes text with the model of a run, a checkpoint or a Hugging Face folder.

    Raises:
        CheckpointError: when the model is not found.
        DataError: when the tokenizer is not found, or its vocabulary is larger than the model's.
    """

    def __init__(
        self, path: Path, *, tokenizer: Path, tokenizer_type: str, device: str = "CPU", compute_dtype: str = "float32"
    ) -> None:
        self._hf_path = path if is_hf_folder(path) else None
        self._trained = None if self._hf_path else open_trained(path)
        self._config = read_config(path) if self._trained is None else self._trained.config
        file = open_tokenizer(tokenizer_type, tokenizer)
        if file.info.vocab_size > self._config["vocab_size"]:
            raise DataError(
                f"{tokenizer}: has {file.info.vocab_size} entries, but the model's vocab_size is "
                f"{self._config['vocab_size']}; give the tokenizer that the model was trained with"
            )
        self._engine, self._eod_id = make_reference_engine(file), file.info.eod_id
        self._device, self._compute_dtype = device, compute_dtype

    def complete(self, prompt: str, *, num_tokens: int, sampling: Sampling) -> str:
        """Return `prompt` and its continuation.

        Raises:
            DataError: when the prompt is empty, or the prompt plus `num_tokens` exceeds the model's positions.
        """
        tokens = [int(token) for token in self._engine.encode_batch([prompt]).ids]
        length = len(tokens) + num_tokens
        window = read_attention_window(self._config) or length
        max_length = min(self._config.get("max_position_embeddings", length), window)
        if not tokens:
            raise DataError("--prompt: empty; give a text to continue")
        if length > max_length:
            raise DataError(
                f"--prompt and --num-tokens add up to {length} tokens, but the model can use at most {max_length}; "
                "lower --num-tokens"
            )
        network = InferenceNetwork(self._config, length=length, device=self._device, compute_dtype=self._compute_dtype)
        if self._trained is None:
            assert self._hf_path is not None
            load_hf(network.cell, self._hf_path)
        else:
            load_trained(network.cell, self._trained.source)
        tokens += generate(
            network.compute_logits, tokens, num_tokens=num_tokens, sampling=sampling, eod_id=self._eod_id
        )
        return self._engine.decode(tokens)
