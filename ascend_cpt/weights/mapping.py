"""Converts weights between Hugging Face and MindFormers, group by group, from the tables in `families`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from ascend_cpt.errors import CheckpointError
from ascend_cpt.model.families import HF_EMBEDDING, HF_OUTPUT
from ascend_cpt.model.parameters import list_groups, list_hf_shapes, list_mindformers_shapes
from ascend_cpt.model.sizes import ModelSizes
from ascend_cpt.model.tensor_layout import Array, Shape

# Buffers that old checkpoints hold beside the weights.
_IGNORED_SUFFIX = ".rotary_emb.inv_freq"
# How many names an error lists before "and n more".
_MAX_NAMES = 5


def iterate_to_mindformers(sizes: ModelSizes, read: Callable[[str], Array]) -> Iterator[tuple[str, Array]]:
    """Yield (MindFormers name, tensor) for every group; `read` returns a Hugging Face tensor by name.

    Memory: the tensors of one group.

    Raises:
        CheckpointError: when a tensor has another shape than by the sizes.
    """
    for group in list_groups(sizes):
        parts = [read(name) for name in group.hf]
        for name, part, shape in zip(group.hf, parts, group.row.list_hf_shapes(sizes), strict=True):
            _check_shape(name, part, shape)
        yield group.mindformers, group.row.layout.join(parts, sizes)


def iterate_to_hf(sizes: ModelSizes, read: Callable[[str], Array]) -> Iterator[tuple[str, Array]]:
    """Yield (Hugging Face name, tensor) for every group; `read` returns a MindFormers tensor by name.

    Raises:
        CheckpointError: when a tensor has another shape than by the sizes.
    """
    shapes = list_mindformers_shapes(sizes)
    for group in list_groups(sizes):
        whole = read(group.mindformers)
        _check_shape(group.mindformers, whole, shapes[group.mindformers])
        yield from zip(group.hf, group.row.layout.split(whole, sizes), strict=True)


def to_mindformers(tensors: Mapping[str, Array], sizes: ModelSizes) -> dict[str, Array]:
    """Convert all Hugging Face tensors of a model.

    A tied model may hold lm_head.weight as well, as long as it equals the embedding.

    Raises:
        CheckpointError: when tensors are missing, unexpected or of another shape.
    """
    check_hf_names(tensors, sizes)
    if sizes.tie_word_embeddings and HF_OUTPUT in tensors:
        check_tied(tensors[HF_EMBEDDING], tensors[HF_OUTPUT])
    return dict(iterate_to_mindformers(sizes, tensors.__getitem__))


def to_hf(tensors: Mapping[str, Array], sizes: ModelSizes) -> dict[str, Array]:
    """Convert all MindFormers tensors of a model; the exact reverse of `to_mindformers`.

    Raises:
        CheckpointError: when tensors are missing, unexpected or of another shape.
    """
    check_mindformers_names(tensors, sizes)
    return dict(iterate_to_hf(sizes, tensors.__getitem__))


def check_hf_names(names: Iterable[str], sizes: ModelSizes) -> None:
    """Check that a Hugging Face checkpoint holds exactly the tensors of its configuration.

    Raises:
        CheckpointError: naming what is missing or unexpected.
    """
    tied_copy = {HF_OUTPUT} if sizes.tie_word_embeddings else set()
    given = {name for name in names if not name.endswith(_IGNORED_SUFFIX)} - tied_copy
    _check_names(given, list_hf_shapes(sizes))


def check_mindformers_names(names: Iterable[str], sizes: ModelSizes) -> None:
    """Check that a MindFormers checkpoint holds exactly the tensors of the model's configuration.

    Raises:
        CheckpointError: naming what is missing or unexpected.
    """
    _check_names(names, [group.mindformers for group in list_groups(sizes)])


def check_tied(embedding: Array, output: Array) -> None:
    """Check that the output layer that a tied model's checkpoint holds is the embedding.

    Raises:
        CheckpointError: when it is not.
    """
    if not np.array_equal(embedding, output):
        raise CheckpointError(
            f"{HF_OUTPUT} differs from {HF_EMBEDDING} although config.json has tie_word_embeddings: true; "
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
        raise CheckpointError(f"the tensors do not fit the model's config.json: {'; '.join(problems)}")


def _check_shape(name: str, tensor: Array, shape: Shape) -> None:
    if tensor.shape != shape:
        raise CheckpointError(f"{name}: has shape {list(tensor.shape)}, but {list(shape)} by the model's config.json")


def _summarize(names: set[str]) -> str:
    listed = ", ".join(sorted(names)[:_MAX_NAMES])
    num_more = len(names) - _MAX_NAMES
    return f"{listed} and {num_more} more" if num_more > 0 else listed
