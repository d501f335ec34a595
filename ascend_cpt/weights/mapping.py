"""Converts weights between Hugging Face and MindFormers, group by group, using the tables in `model.families`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from ascend_cpt.errors import CheckpointError
from ascend_cpt.model.families import HF_EMBEDDING, HF_OUTPUT
from ascend_cpt.model.parameters import list_groups, list_hf_shapes, list_mindformers_shapes
from ascend_cpt.model.sizes import ModelSizes
from ascend_cpt.model.tensor_layout import Array, Shape

# Buffers in old checkpoints that are not weights.
_IGNORED_SUFFIX = ".rotary_emb.inv_freq"
# Maximum number of names in an error message.
_MAX_NAMES = 5


def iterate_to_mindformers(sizes: ModelSizes, read: Callable[[str], Array]) -> Iterator[tuple[str, Array]]:
    """Yield (MindFormers name, tensor) for every group. `read` returns a Hugging Face tensor by name.

    Peak memory: the tensors of one group.

    Raises:
        CheckpointError: the shape of a tensor does not match the sizes.
    """
    for group in list_groups(sizes):
        parts = [read(name) for name in group.hf]
        for name, part, shape in zip(group.hf, parts, group.row.list_hf_shapes(sizes), strict=True):
            _check_shape(name, part, shape)
        yield group.mindformers, group.row.layout.join(parts, sizes)


def iterate_to_hf(sizes: ModelSizes, read: Callable[[str], Array]) -> Iterator[tuple[str, Array]]:
    """Yield (Hugging Face name, tensor) for every group. `read` returns a MindFormers tensor by name.

    Raises:
        CheckpointError: the shape of a tensor does not match the sizes.
    """
    shapes = list_mindformers_shapes(sizes)
    for group in list_groups(sizes):
        whole = read(group.mindformers)
        _check_shape(group.mindformers, whole, shapes[group.mindformers])
        yield from zip(group.hf, group.row.layout.split(whole, sizes), strict=True)


def to_mindformers(tensors: Mapping[str, Array], sizes: ModelSizes) -> dict[str, Array]:
    """Convert all Hugging Face tensors of a model.

    A model with tied embeddings may also have lm_head.weight if it equals the embedding.

    Raises:
        CheckpointError: tensors are missing, unexpected or have another shape.
    """
    check_hf_names(tensors, sizes)
    if sizes.tie_word_embeddings and HF_OUTPUT in tensors:
        check_tied(tensors[HF_EMBEDDING], tensors[HF_OUTPUT])
    return dict(iterate_to_mindformers(sizes, tensors.__getitem__))


def to_hf(tensors: Mapping[str, Array], sizes: ModelSizes) -> dict[str, Array]:
    """Convert all of a model's MindFormers tensors. This is the exact inverse of `to_mindformers`.

    Raises:
        CheckpointError: tensors are missing, unexpected or have another shape.
    """
    check_mindformers_names(tensors, sizes)
    return dict(iterate_to_hf(sizes, tensors.__getitem__))


def check_hf_names(names: Iterable[str], sizes: ModelSizes) -> None:
    """Check that a Hugging Face checkpoint has exactly the tensors described by its configuration.

    Raises:
        CheckpointError: tensors are missing or unexpected. The message lists them.
    """
    tied_copy = {HF_OUTPUT} if sizes.tie_word_embeddings else set()
    given = {name for name in names if not name.endswith(_IGNORED_SUFFIX)} - tied_copy
    _check_names(given, list_hf_shapes(sizes))


def check_mindformers_names(names: Iterable[str], sizes: ModelSizes) -> None:
    """Check that a MindFormers checkpoint has exactly the tensors described by its model configuration.

    Raises:
        CheckpointError: tensors are missing or unexpected. The message lists them.
    """
    _check_names(names, [group.mindformers for group in list_groups(sizes)])


def check_tied(embedding: Array, output: Array) -> None:
    """Check that the output layer in a checkpoint with tied embeddings equals the embedding.

    Raises:
        CheckpointError: the two tensors differ.
    """
    if not np.array_equal(embedding, output):
        raise CheckpointError(
            f"{HF_OUTPUT} differs from {HF_EMBEDDING} although tie_word_embeddings is set in config.json: "
            "set tie_word_embeddings to false in config.json to keep both"
        )


def _check_names(given: Iterable[str], expected: Iterable[str]) -> None:
    given, expected = set(given), set(expected)
    problems = [
        f"{problem}: {_summarize(names)}"
        for problem, names in (("missing", expected - given), ("not part of this model", given - expected))
        if names
    ]
    if problems:
        raise CheckpointError(f"the tensors do not match config.json: {'; '.join(problems)}")


def _check_shape(name: str, tensor: Array, shape: Shape) -> None:
    if tensor.shape != shape:
        raise CheckpointError(f"{name}: has shape {list(tensor.shape)}, expected {list(shape)} from config.json")


def _summarize(names: set[str]) -> str:
    listed = ", ".join(sorted(names)[:_MAX_NAMES])
    num_more = len(names) - _MAX_NAMES
    return f"{listed} and {num_more} more" if num_more > 0 else listed
