"""Converts checkpoint folders between Hugging Face and MindFormers, one tensor group at a time."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ascend_cpt.errors import CheckpointError, ConfigError
from ascend_cpt.model.families import ARCHITECTURES, HF_EMBEDDING, HF_OUTPUT
from ascend_cpt.model.parameters import list_groups, list_hf_shapes, list_mindformers_shapes
from ascend_cpt.model.sizes import read_sizes
from ascend_cpt.weights.dtypes import DTYPES, Array, cast
from ascend_cpt.weights.folder_writer import (
    DEFAULT_SHARD_BYTES,
    create_folder,
    name_hf_file,
    name_mindformers_file,
    write_config,
    write_shards,
)
from ascend_cpt.weights.hf_folder import HfFolder, list_companions
from ascend_cpt.weights.mapping import check_mindformers_names, check_tied, iterate_to_hf, iterate_to_mindformers
from ascend_cpt.weights.safetensors_file import TensorInfo
from ascend_cpt.weights.sources import ResizedVocabulary, TensorSource, UpcycledModel

CARD_NAME = "README.md"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options for the new folder. `dtype` and `vocab_size` are unchanged if None."""

    dtype: str | None = None
    vocab_size: int | None = None
    max_shard_bytes: int = DEFAULT_SHARD_BYTES


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A summary of a written folder."""

    path: Path
    num_tensors: int
    num_parameters: int
    size_bytes: int

    def __str__(self) -> str:
        size_gb = self.size_bytes / 1e9
        return f"{self.path}: {self.num_tensors} tensors, {self.num_parameters:,} parameters, {size_gb:.3f} GB"


def convert_to_mindformers(folder: HfFolder, target: Path, options: Options) -> Summary:
    """Convert a Hugging Face folder to a MindFormers checkpoint, including config.json and tokenizer files.

    Raises:
        CheckpointError: the tensors do not match config.json, or `target` exists or cannot be written.
    """
    folder.check()
    if folder.sizes.tie_word_embeddings and HF_OUTPUT in folder.tensors:
        check_tied(folder.read(HF_EMBEDDING), folder.read(HF_OUTPUT))
    source, config = _resize(folder, folder.config, options.vocab_size)
    sizes = read_sizes(config)
    types = _choose_types(source, [group.hf for group in list_groups(sizes)], options.dtype)
    infos = [
        TensorInfo(name=group.mindformers, dtype=types[group.hf[0]], shape=shape)
        for group, shape in zip(list_groups(sizes), list_mindformers_shapes(sizes).values(), strict=True)
    ]
    tensors = iterate_to_mindformers(sizes, lambda name: _read_as(source, name, types[name]))
    return _write(target, infos, tensors, config, list_companions(folder.path), options, is_hf=False)


def convert_to_hf(
    source: TensorSource,
    config: Mapping[str, Any],
    target: Path,
    options: Options,
    companions: Sequence[Path] = (),
    *,
    card: str | None = None,
) -> Summary:
    """Convert a MindFormers checkpoint to a Hugging Face folder with `config` as its config.json.

    Args:
        source: The checkpoint, or the mean of several.
        config: The model's Hugging Face configuration.
        target: Folder to create.
        options: dtype, vocabulary size and shard size.
        companions: Files to copy: tokenizer, generation_config.json.
        card: Text of README.md.

    Raises:
        CheckpointError: the tensors do not match `config`, or `target` exists or cannot be written.
    """
    try:
        check_mindformers_names(source.tensors, read_sizes(config))
    except CheckpointError as error:
        raise CheckpointError(f"{source.path}: {error}") from error
    source, config = _resize(source, config, options.vocab_size)
    sizes = read_sizes(config)
    groups = list_groups(sizes)
    types = _choose_types(source, [(group.mindformers,) for group in groups], options.dtype)
    infos = [
        TensorInfo(name=name, dtype=types[group.mindformers], shape=shape)
        for group in groups
        for name, shape in zip(group.hf, group.row.list_hf_shapes(sizes), strict=True)
    ]
    tensors = iterate_to_hf(sizes, lambda name: _read_as(source, name, types[name]))
    return _write(
        target,
        infos,
        tensors,
        config,
        companions,
        options,
        is_hf=True,
        texts=None if card is None else {CARD_NAME: card},
    )


def write_hf(
    source: TensorSource,
    config: Mapping[str, Any],
    target: Path,
    options: Options,
    companions: Sequence[Path] = (),
    *,
    texts: Mapping[str, str | bytes] | None = None,
) -> Summary:
    """Write a Hugging Face folder from Hugging Face tensors, such as those of a larger model.

    Args:
        source: The tensors, with the shapes described by `config`.
        config: The content of config.json.
        target: Folder to create.
        options: dtype and shard size.
        companions: Files to copy: tokenizer, generation_config.json.
        texts: More files to write, as name → content.

    Raises:
        CheckpointError: `target` exists or cannot be written.
    """
    shapes = list_hf_shapes(read_sizes(config))
    types = _choose_types(source, [(name,) for name in shapes], options.dtype)
    infos = [TensorInfo(name=name, dtype=types[name], shape=shape) for name, shape in shapes.items()]
    tensors = ((name, _read_as(source, name, dtype)) for name, dtype in types.items())
    return _write(target, infos, tensors, config, companions, options, is_hf=True, texts=texts)


@dataclass(frozen=True, kw_only=True)
class Upcycling:
    """How to make a mixture of experts from a dense model; see `UpcycledModel`."""

    num_experts: int
    num_per_token: int
    noise: float
    seed: int


UPCYCLED = {"qwen3": "qwen3_moe"}
"""Family of a dense model → family of the mixture of experts whose other layers are the same."""


def upcycle(folder: HfFolder, target: Path, upcycling: Upcycling, options: Options) -> Summary:
    """Write a mixture of experts in which every expert is a copy of the dense model's MLP, as a Hugging Face folder.

    Raises:
        CheckpointError: the tensors do not match config.json, or `target` exists or cannot be written.
        ConfigError: there is no mixture of experts for the family, or the numbers of experts do not fit.
    """
    folder.check()
    if folder.sizes.family not in UPCYCLED:
        raise ConfigError(
            f"{folder.path}: model_type {folder.sizes.family} cannot be upcycled; only {', '.join(UPCYCLED)} can "
            "(Mixtral, the mixture of experts for Llama, is not supported)"
        )
    if upcycling.noise < 0:
        raise ConfigError(f"--noise {upcycling.noise:g}: must not be negative")
    family = UPCYCLED[folder.sizes.family]
    config = {
        **folder.config,
        "model_type": family,
        "architectures": [ARCHITECTURES[family]],
        "num_experts": upcycling.num_experts,
        "num_experts_per_tok": upcycling.num_per_token,
        "moe_intermediate_size": folder.sizes.intermediate_size,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
    sizes = read_sizes(config)
    source = UpcycledModel(folder, sizes, noise=upcycling.noise, seed=upcycling.seed)
    return write_hf(source, config, target, options, list_companions(folder.path))


def _read_as(source: TensorSource, name: str, dtype: str) -> Array:
    return cast(source.read(name), source.tensors[name].dtype, dtype, name)


def _choose_types(source: TensorSource, groups: Sequence[Sequence[str]], dtype: str | None) -> dict[str, str]:
    """Return each tensor's output dtype. Tensors to be joined must have the same dtype."""
    types: dict[str, str] = {}
    for names in groups:
        given = {source.tensors[name].dtype for name in names}
        if dtype is None and len(given) > 1:
            raise CheckpointError(
                f"{source.path}: {', '.join(names)} have different types ({', '.join(sorted(given))}) but are merged "
                "into one tensor: choose a --dtype"
            )
        types.update((name, DTYPES[dtype] if dtype else source.tensors[name].dtype) for name in names)
    return types


def _resize(
    source: TensorSource, config: Mapping[str, Any], vocab_size: int | None
) -> tuple[TensorSource, Mapping[str, Any]]:
    if vocab_size is None or vocab_size == config["vocab_size"]:
        return source, config
    logger.warning("%s: resizing the vocabulary from %d to %d rows", source.path, config["vocab_size"], vocab_size)
    return ResizedVocabulary(source, vocab_size), {**config, "vocab_size": vocab_size}


def _write(
    target: Path,
    infos: Sequence[TensorInfo],
    tensors: Iterator[tuple[str, Array]],
    config: Mapping[str, Any],
    companions: Sequence[Path],
    options: Options,
    *,
    is_hf: bool,
    texts: Mapping[str, str | bytes] | None = None,
) -> Summary:
    name_file = name_hf_file if is_hf else name_mindformers_file
    with create_folder(target) as folder:
        write_shards(folder, infos, tensors, name_file=name_file, max_shard_bytes=options.max_shard_bytes)
        write_config(folder, config, name_main_dtype(infos))
        for companion in companions:
            shutil.copyfile(companion, folder / companion.name)
        for name, text in (texts or {}).items():
            (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return summarize(target, infos)


def name_main_dtype(infos: Sequence[TensorInfo]) -> str:
    """Return the dtype that most elements have, since config.json has a single one."""
    counts: dict[str, int] = {}
    for info in infos:
        counts[info.dtype] = counts.get(info.dtype, 0) + info.num_elements
    most = max(sorted(counts), key=counts.__getitem__)
    return next(name for name, dtype in DTYPES.items() if dtype == most)


def summarize(target: Path, infos: Sequence[TensorInfo]) -> Summary:
    """Return the summary of a written folder."""
    return Summary(
        path=target,
        num_tensors=len(infos),
        num_parameters=sum(info.num_elements for info in infos),
        size_bytes=sum(info.size_bytes for info in infos),
    )
