"""Handles raw text in `cpt.sources`: locates packed datasets in the cache and packs the text.

Each dataset's cache folder is named after a hash of everything that determines the dataset's content: the input files
with their content fingerprints, the tokenizer and the settings. A dataset is finished once its manifest exists.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ascend_cpt.cluster.job.channel import JobChannel
from ascend_cpt.cluster.job.checks import wait_for_work
from ascend_cpt.config.loader import RunConfig
from ascend_cpt.config.raw_schema import RawConfig
from ascend_cpt.config.values import format_bytes, format_number
from ascend_cpt.data.identity import Identity, hash_identity
from ascend_cpt.data.pack_program import run_program
from ascend_cpt.data.packed.manifest import check_shards, describe_packing, load_manifest, manifest_path
from ascend_cpt.data.packed.packing import CONCAT, PACKINGS
from ascend_cpt.data.pipeline import Preparation, prepare
from ascend_cpt.data.settings import (
    DECONTAMINATION_ACTIONS,
    INPUT_FORMATS,
    MINHASH_FUNCTIONS,
    MINHASH_PRECISIONS,
    MINHASH_WORDS,
    TAILS,
    TXT_DOCUMENTS,
    PreprocessSettings,
)
from ascend_cpt.data.tokenizing.names import (
    ENGINES,
    HUGGING_FACE,
    TOKENIZER_TYPES,
    find_named_tokenizer,
    parse_tokenizer_type,
)
from ascend_cpt.errors import ConfigError, DataError

CACHE_FOLDER = "packed"
DATASET_NAME = "data_text_document"
VISIBILITY_TIMEOUT_S = 60.0  # network file systems may show a new file with a delay
_HASH_CHARACTERS = 20
_POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class RawSource:
    """A raw-text source and its dataset in the cache."""

    name: str
    settings: PreprocessSettings
    preparation: Preparation

    @property
    def prefix(self) -> str:
        """Prefix of the packed dataset."""
        return self.settings.dataset_prefix(self.settings.json_keys[0])

    @property
    def is_packed(self) -> bool:
        """Whether the cache holds the finished dataset. The manifest is written last."""
        return manifest_path(self.prefix).is_file()

    def describe(self) -> str:
        """Describe the input and say whether it is packed."""
        files = self.preparation.files
        size = format_bytes(sum(file.size_bytes for file in files))
        tokenizer = self.preparation.tokenizer.info
        state = f"packed earlier in {self.prefix}" if self.is_packed else f"to be packed in {self.prefix}"
        return (
            f"raw      {self.name}: {format_number(len(files), f'{files[0].format} file')}, {size}, "
            f"tokenizer {tokenizer.name}, rows of {self.settings.seq_length}, packing {self.settings.packing}: {state}"
        )


def find_raw_sources(config: RunConfig) -> list[RawSource]:
    """Return the raw-text sources. Their files are read to compute fingerprints.

    Raises:
        CptError: naming the key, when a setting is invalid, or the input or tokenizer cannot be read.
    """
    return [_prepare(config, name, source.raw) for name, source in config.cpt.sources.items() if source.raw is not None]


def pack_raw_sources(config: RunConfig, channel: JobChannel, show: Callable[[str], None]) -> dict[str, str]:
    """Pack the raw text of `cpt.sources` and return the prefixes of the packed datasets. All processes call this.

    With shared storage, rank 0 packs; otherwise the first process on each node does. The others wait on the job
    channel, which has no time limit while the packing process sends reports.

    Args:
        config: The configuration.
        channel: The channel to the other processes.
        show: Prints a line.

    Raises:
        CptError: when text cannot be packed, here or in another process.
    """
    packs = channel.rank == 0 if config.cpt.storage.shared else channel.is_first_on_node

    def pack() -> dict[str, str]:
        sources = find_raw_sources(config) if packs else []
        for source in sources:
            _pack(source, show)
        return {source.name: source.prefix for source in sources}

    packed = wait_for_work(channel, "raw text packed", pack)
    answers: list[dict[str, str]] = channel.all_gather("packed data", packed)
    prefixes = answers[0 if config.cpt.storage.shared else channel.first_local_rank]
    for prefix in prefixes.values():
        _wait_for_file(manifest_path(prefix))
    return prefixes


def list_packed(sources: Sequence[RawSource]) -> dict[str, str] | None:
    """Return the prefix of each packed dataset by name, or None if any dataset is not packed yet."""
    return {source.name: source.prefix for source in sources} if all(one.is_packed for one in sources) else None


def find_tokenizer(config: RunConfig) -> str | None:
    """Return the tokenizer for the run's tasks, else the initial weights' folder, or None if neither has one."""
    validation = config.cpt.validation
    if validation is not None and validation.tokenizer:
        return validation.tokenizer
    weights = config.initial_weights
    return weights if weights and (Path(weights) / "tokenizer.json").is_file() else None


def _pack(source: RawSource, show: Callable[[str], None]) -> None:
    """Pack a source into the cache if necessary, in a child process that ends with this one.

    Raises:
        DataError: when the input is bad, or another run is packing the same text.
    """
    show(source.describe())
    if source.is_packed:
        check_shards(load_manifest(source.prefix))
        return
    try:
        run_program(source.settings)
    except DataError as error:
        raise DataError(f"cpt.sources.{source.name}.raw: {error}") from None
    manifest = load_manifest(source.prefix)
    show(
        f"raw      {source.name}: packed {manifest.num_documents} documents, {manifest.num_tokens} tokens, "
        f"{manifest.num_rows} rows, packing {describe_packing(manifest)}"
    )


def _wait_for_file(path: Path) -> None:
    """Wait until a file written by another node is visible here. On timeout, return and let opening the file fail."""
    deadline = time.monotonic() + VISIBILITY_TIMEOUT_S
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _prepare(config: RunConfig, name: str, raw: RawConfig) -> RawSource:
    keys = ("cpt", "sources", name, "raw")
    where = f"{config.locate(*keys)}: {'.'.join(keys)}"
    try:
        settings = _make_settings(config, raw)
        preparation = prepare(settings)
        cache = Path(raw.cache_dir or Path(config.mindformers.get("output_dir") or "output") / CACHE_FOLDER)
        folder = cache / f"{name}-{_hash_content(preparation.identity)}"
    except (DataError, ConfigError) as error:
        raise type(error)(f"{where}: {error} (paths are relative to {Path.cwd()})") from None
    settings = dataclasses.replace(settings, output_prefix=str(folder / "data"))
    return RawSource(name=name, settings=settings, preparation=preparation)


def _hash_content(identity: Identity) -> str:
    """Return the hash of an identity, leaving out the tokenizer's name because the fingerprint identifies it."""
    tokenizer = {key: value for key, value in identity["tokenizer"].items() if key != "name"}
    return hash_identity({**identity, "tokenizer": tokenizer})[:_HASH_CHARACTERS]


def _make_settings(config: RunConfig, raw: RawConfig) -> PreprocessSettings:
    for key, known in (
        ("format", INPUT_FORMATS),
        ("txt_documents", TXT_DOCUMENTS),
        ("tokenizer_engine", ENGINES),
        ("packing", PACKINGS),
        ("tail", TAILS),
        ("decontaminate_action", DECONTAMINATION_ACTIONS),
        ("minhash_hash", MINHASH_FUNCTIONS),
        ("minhash_precision", MINHASH_PRECISIONS),
        ("minhash_words", MINHASH_WORDS),
    ):
        value = getattr(raw, key)
        if value is not None and value not in known:
            raise ConfigError(f"{key}: {value!r} is unknown; choose one of {', '.join(map(str, known))}")
    if raw.packing != CONCAT and raw.tail != "pad":
        raise ConfigError(
            f"tail: {raw.tail}: needs packing: {CONCAT}, because with {raw.packing} every row may be padded"
        )
    if len(raw.json_keys) != 1:
        raise ConfigError(
            f"json_keys: {list(raw.json_keys)}: each key becomes a separate dataset; give one key, and a source for "
            "each of the others"
        )
    tokenizer_type, tokenizer = _choose_tokenizer(config, raw)
    return PreprocessSettings(
        inputs=raw.input,
        input_format=raw.format,
        json_keys=raw.json_keys,
        handler_name=raw.handler_name,
        txt_documents=raw.txt_documents,
        drop_duplicates=raw.drop_duplicates,
        filters_path=raw.filters,
        decontaminate=raw.decontaminate,
        decontaminate_ngram=raw.decontaminate_ngram,
        decontaminate_action=raw.decontaminate_action,
        drop_near_duplicates=raw.drop_near_duplicates,
        minhash_ngram=raw.minhash_ngram,
        minhash_buckets=raw.minhash_buckets,
        minhash_hashes=raw.minhash_hashes,
        minhash_hash=raw.minhash_hash,
        minhash_precision=raw.minhash_precision,
        minhash_words=raw.minhash_words,
        max_bad_fraction=raw.max_bad_fraction,
        max_record_bytes=raw.max_record_bytes,
        tokenizer_type=tokenizer_type,
        tokenizer_path=tokenizer,
        tokenizer_engine=raw.tokenizer_engine,
        append_eod=raw.append_eod,
        append_bos=raw.append_bos,
        eod_token=raw.eod_token,
        parse_special_tokens=raw.parse_special_tokens,
        output_prefix="data",
        dataset_name=DATASET_NAME,
        seq_length=config.cpt.seq_length,
        num_shards=raw.n_subs,
        workers=raw.workers or os.cpu_count() or 1,
        packing=raw.packing,
        tail=raw.tail,
    )


def _choose_tokenizer(config: RunConfig, raw: RawConfig) -> tuple[str, str]:
    """Return the type and path of the tokenizer, taken from the source, the run's tasks or the initial weights.

    Raises:
        ConfigError: there is no tokenizer, or its type is unknown.
    """
    path, type_name = raw.tokenizer or find_tokenizer(config), raw.tokenizer_type
    if path is None:
        raise ConfigError("tokenizer: missing, and init_from has none; add the model's tokenizer")
    validation = config.cpt.validation
    if type_name is None and raw.tokenizer is None and validation is not None and path == validation.tokenizer:
        type_name = validation.tokenizer_type
    try:
        kind = parse_tokenizer_type(type_name or HUGGING_FACE)
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f"tokenizer_type: {error}") from None
    return (kind, path) if type_name in (None, *TOKENIZER_TYPES) else find_named_tokenizer(kind, path)
