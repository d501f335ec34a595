"""Checks that models can be merged: architecture, vocabulary and tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ascend_cpt.errors import CheckpointError
from ascend_cpt.model.families import HF_EMBEDDING, HF_OUTPUT
from ascend_cpt.model.sizes import CONFIG_NAME
from ascend_cpt.strict_json import JsonError, read_json_object
from ascend_cpt.weights.hf_folder import HfFolder, is_hf_folder
from ascend_cpt.weights.mapping import check_tied

_TOKENIZER_NAME = "tokenizer.json"
# Fields of ModelSizes that may differ: they are in config.json and do not change the shape of any tensor.
_CONFIG_FIELDS = ("rms_norm_eps", "rope")


def open_models(paths: Sequence[Path], *, like: Path) -> tuple[list[HfFolder], list[str]]:
    """Open the models to merge, and return them with warnings.

    Args:
        paths: Hugging Face folders.
        like: The one whose config.json and tokenizer the merged model gets.

    Raises:
        CheckpointError: a folder is damaged, or the models differ in architecture, vocabulary or token ids.
        ConfigError: the family of a model is not supported.
    """
    models = [_open(path) for path in paths]
    reference = next(model for model in models if model.path == like)
    warnings: list[str] = []
    vocabulary = _read_vocabulary(reference.path)
    for model in models:
        if model is not reference:
            _check_sizes(model, reference)
            warnings += _compare_config(model, reference)
            warnings += _compare_vocabularies(model.path, _read_vocabulary(model.path), reference.path, vocabulary)
    return models, warnings


def _open(path: Path) -> HfFolder:
    if not is_hf_folder(path) and not (path / CONFIG_NAME).is_file():
        raise CheckpointError(
            f"{path}: not a Hugging Face model; give its folder, or export a run to one first with "
            "tools/convert_weights.py to-hf"
        )
    model = HfFolder(path)
    model.check()
    if model.sizes.tie_word_embeddings and HF_OUTPUT in model.tensors:
        check_tied(model.read(HF_EMBEDDING), model.read(HF_OUTPUT))
    return model


def _check_sizes(model: HfFolder, reference: HfFolder) -> None:
    rows, expected = model.sizes.vocab_size, reference.sizes.vocab_size
    others = [
        f"{name} is {getattr(model.sizes, name)}, not {value}"
        for name, value in vars(reference.sizes).items()
        if name not in ("vocab_size", *_CONFIG_FIELDS) and getattr(model.sizes, name) != value
    ]
    if others:
        raise CheckpointError(
            f"{model.path}: its architecture differs from that of {reference.path}: {'; '.join(others)}; merge models "
            "that were trained from the same base model"
        )
    if rows != expected:
        raise CheckpointError(
            f"{model.path}: its vocabulary has {rows} rows, {abs(rows - expected)} "
            f"{'more' if rows > expected else 'fewer'} than that of {reference.path} ({expected}); rows that only one "
            "model has cannot be merged: merge before the vocabulary is extended, or extend both in the same way"
        )


def _compare_config(model: HfFolder, reference: HfFolder) -> list[str]:
    return [
        f"{model.path}: {name} is {getattr(model.sizes, name)}, but {getattr(reference.sizes, name)} in "
        f"{reference.path}, whose value is written (--like chooses the model)"
        for name in _CONFIG_FIELDS
        if getattr(model.sizes, name) != getattr(reference.sizes, name)
    ]


def _compare_vocabularies(
    path: Path, tokens: dict[str, int] | None, reference: Path, expected: dict[str, int] | None
) -> list[str]:
    if tokens is None or expected is None:
        return []
    moved = [token for token, number in tokens.items() if expected.get(token, number) != number]
    if moved:
        raise CheckpointError(
            f"{path}: its tokenizer and that of {reference} have different ids for {len(moved)} tokens ("
            f"such as {min(moved)!a}: {tokens[min(moved)]}, not {expected[min(moved)]}), so rows of the embedding "
            "have different meanings; merge models with the same tokenizer"
        )
    unshared = tokens.keys() ^ expected.keys()
    if not unshared:
        return []
    return [
        f"{path}: its tokenizer and that of {reference} differ in {len(unshared)} tokens, such as "
        f"{min(unshared)!a}; the rows of these tokens were trained in only one of the models"
    ]


def _read_vocabulary(folder: Path) -> dict[str, int] | None:
    """Return token → id from tokenizer.json, or None if there is no such file."""
    path = folder / _TOKENIZER_NAME
    if not path.is_file():
        return None
    try:
        content = read_json_object(path)
        model: Any = content.get("model")
        found: Any = model.get("vocab") if isinstance(model, dict) else None
        # Unigram models have a list of (token, score).
        entries = found.items() if isinstance(found, dict) else ((pair[0], at) for at, pair in enumerate(found or ()))
        vocabulary = {str(token): int(number) for token, number in entries}
        vocabulary.update((str(added["content"]), int(added["id"])) for added in content.get("added_tokens") or ())
    except (OSError, JsonError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not a Hugging Face tokenizer; copy it again") from error
    return vocabulary
