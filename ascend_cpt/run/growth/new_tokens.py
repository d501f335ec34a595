"""Adds new tokens, learned on a corpus, to a tokenizer and to the model that uses it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ascend_cpt import __version__
from ascend_cpt.data.readers.input_files import fingerprint_file
from ascend_cpt.data.texts import TextInput, iter_texts
from ascend_cpt.data.tokenizing.base import Engine, TokenizerFile
from ascend_cpt.data.tokenizing.files import fingerprint_tokenizer
from ascend_cpt.data.tokenizing.growth.byte_level import TOKENIZER_JSON
from ascend_cpt.data.tokenizing.growth.compare_tokenizers import Comparison, compare_tokenizers
from ascend_cpt.data.tokenizing.growth.learn_merges import Learned, LearnSettings
from ascend_cpt.data.tokenizing.growth.open_growable import GrowableTokenizer, find_rank_files, open_growable
from ascend_cpt.data.tokenizing.growth.sentence_piece import TOKENIZER_MODEL
from ascend_cpt.data.tokenizing.info import TokenizerInfo
from ascend_cpt.data.tokenizing.names import HUGGING_FACE, SENTENCE_PIECE
from ascend_cpt.data.tokenizing.reference_engines import make_reference_engine
from ascend_cpt.errors import CheckpointError, DataError
from ascend_cpt.weights.convert import Options, Summary, write_hf
from ascend_cpt.weights.folder_writer import DEFAULT_SHARD_BYTES, check_new_folder, create_folder
from ascend_cpt.weights.growth.rows import MEAN, ExtendedVocabulary, NewRows, pad_rows
from ascend_cpt.weights.hf_folder import HfFolder, is_hf_folder, list_companions

RECORD_NAME = "new_tokens.json"
_HELD_OUT_BYTES = 32 << 20
_HASH_RANGE = 1 << 64


@dataclass(frozen=True, kw_only=True)
class NewTokenSettings:
    """Settings of tools/extend_vocabulary.py; see its `--help`."""

    base: Path
    target: Path
    corpus: TextInput
    num_tokens: int
    held_out: TextInput | None = None
    """Default: a share of the corpus."""
    held_out_share: float = 0.01
    general: TextInput | None = None
    """Texts of other kinds, whose ids should rarely change."""
    max_bytes: int = 100_000_000
    """Amount of text to learn from; from a larger corpus, a random part of this size is used."""
    min_count: int = 10
    max_chars: int = 16
    method: str = MEAN
    seed: int = 42
    multiple: int = 128
    max_shard_bytes: int = DEFAULT_SHARD_BYTES

    def __post_init__(self) -> None:
        """Check the numbers. Raise DataError for the first problem."""
        for is_good, message in (
            (self.num_tokens >= 1, f"--new-tokens {self.num_tokens}: must be at least 1"),
            (0 < self.held_out_share < 1, f"--heldout-share {self.held_out_share}: must be between 0 and 1"),
            (self.max_bytes >= 1, f"--max-bytes {self.max_bytes}: must be at least 1"),
            (self.min_count >= 1, f"--min-count {self.min_count}: must be at least 1"),
            (self.max_chars >= 2, f"--max-chars {self.max_chars}: must be at least 2"),
            (self.multiple >= 1, f"--pad-to {self.multiple}: must be at least 1"),
            (self.seed >= 0, f"--seed {self.seed}: must be at least 0"),
        ):
            if not is_good:
                raise DataError(message)


@dataclass(frozen=True, kw_only=True)
class Extension:
    """The result: what was written, and both tokenizers compared on texts."""

    kind: str
    first_id: int
    num_tokens: int
    num_rows: int | None
    """Rows of the new embedding; None without a model."""
    is_tied: bool
    comparisons: dict[str, Comparison] = field(default_factory=dict)
    """By the name of the texts: `held out`, `general`."""
    summary: Summary | None = None
    equal_models: str = ""
    """Documents for which tokenizer.json and tokenizer.model give the same ids, "" if there are not both."""


def add_new_tokens(settings: NewTokenSettings) -> Extension:
    """Write the folder of the extended tokenizer and model.

    Raises:
        DataError: the tokenizer cannot be extended, there is no text, or the corpus has too few frequent pairs.
        CheckpointError: the model is damaged, the target exists, or it cannot be written.
    """
    check_new_folder(settings.target)
    folder = HfFolder(settings.base) if is_hf_folder(settings.base) else None
    tokenizer = open_growable(settings.base)
    if folder is not None:
        folder.check()
        if tokenizer.first_id > folder.sizes.vocab_size:
            raise CheckpointError(
                f"{settings.base}: the tokenizer has ids up to {tokenizer.first_id - 1}, but the embedding has only "
                f"{folder.sizes.vocab_size} rows; use the tokenizer of this model"
            )
    held_out: list[str] = []
    learned = tokenizer.learn(_choose_texts(settings, held_out), _make_learn_settings(settings))
    if len(learned.pieces) < settings.num_tokens:
        raise DataError(
            f"--new-tokens {settings.num_tokens}: the corpus has only {len(learned.pieces)} new pieces that occur at "
            f"least {settings.min_count} times; request fewer tokens, add text or lower --min-count"
        )
    if settings.held_out is not None:
        held_out = list(_limit(iter_texts(settings.held_out)))
    if not held_out:
        raise DataError(
            f"--heldout-share {settings.held_out_share}: no document of the corpus is held out; raise it, or give "
            "--heldout"
        )
    files = tokenizer.extend(learned)
    return _measure_and_write(settings, tokenizer, learned, files, folder, held_out)


def _make_learn_settings(settings: NewTokenSettings) -> LearnSettings:
    return LearnSettings(num_pieces=settings.num_tokens, min_count=settings.min_count, max_chars=settings.max_chars)


def _choose_texts(settings: NewTokenSettings, held_out: list[str]) -> Iterator[str]:
    """Yield the texts to learn from, and append held-out ones to the list.

    A hash of the text decides, so copies of a text are on the same side.
    """
    total = sum(file.size_bytes for file in settings.corpus.find_files())
    share = settings.held_out_share if settings.held_out is None else 0.0
    learned_share = min(1.0, settings.max_bytes / max(total, 1)) * (1 - share)
    num_bytes = held_out_bytes = 0
    for text in iter_texts(settings.corpus):
        raw = text.encode("utf-8")
        place = int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little") / _HASH_RANGE
        if place < share and held_out_bytes < _HELD_OUT_BYTES:
            held_out.append(text)
            held_out_bytes += len(raw)
        elif share <= place < share + learned_share and num_bytes < settings.max_bytes:
            num_bytes += len(raw)
            yield text


def _limit(texts: Iterator[str]) -> Iterator[str]:
    num_bytes = 0
    for text in texts:
        yield text
        num_bytes += len(text.encode("utf-8"))
        if num_bytes >= _HELD_OUT_BYTES:
            return


def _open_engine(folder: Path, name: str) -> Engine:
    """Return the reference engine of a file. Its control tokens do not matter, because only text is encoded."""
    kind = HUGGING_FACE if name == TOKENIZER_JSON else SENTENCE_PIECE
    info = TokenizerInfo(type=kind, name=name, fingerprint="", vocab_size=0, eod_id=0, pad_id=1)
    return make_reference_engine(TokenizerFile(path=folder / name, info=info, control_strings=()))


def _measure_and_write(
    settings: NewTokenSettings,
    tokenizer: GrowableTokenizer,
    learned: Learned,
    files: dict[str, bytes],
    folder: HfFolder | None,
    held_out: list[str],
) -> Extension:
    first_id = tokenizer.first_id
    companions = [
        path
        for path in list_companions(settings.base)
        if path.name not in files and path.name not in find_rank_files(settings.base)
    ]
    name = TOKENIZER_JSON if TOKENIZER_JSON in files else TOKENIZER_MODEL
    texts = {"held out": held_out}
    if settings.general is not None:
        texts["general"] = list(_limit(iter_texts(settings.general)))
    equal = ""
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        _write_files(place, files, companions)
        old, new = _open_engine(settings.base, name), _open_engine(place, name)
        comparisons = {key: compare_tokenizers(old, new, first_id, group) for key, group in texts.items()}
        if TOKENIZER_JSON in files and TOKENIZER_MODEL in files:
            both = compare_tokenizers(_open_engine(place, TOKENIZER_MODEL), new, first_id, held_out)
            equal = f"{both.num_unchanged} of {both.num_documents}"
    is_tied = folder is not None and folder.sizes.tie_word_embeddings
    num_rows = pad_rows(first_id + len(learned.pieces), folder.sizes.vocab_size, settings.multiple) if folder else None
    extension = Extension(
        kind=tokenizer.kind,
        first_id=first_id,
        num_tokens=len(learned.pieces),
        num_rows=num_rows,
        is_tied=is_tied,
        comparisons=comparisons,
        equal_models=equal,
    )
    files = {**files, RECORD_NAME: _make_record(settings, extension, learned)}
    summary = None
    if folder is None or num_rows is None:
        with create_folder(settings.target) as target:
            _write_files(target, files, companions)
    else:
        parts = tuple(piece.parts for piece in learned.pieces)
        new_rows = NewRows(
            first_id=first_id, parts=parts, num_rows=num_rows, method=settings.method, seed=settings.seed
        )
        summary = write_hf(
            ExtendedVocabulary(folder, new_rows),
            {**folder.config, "vocab_size": num_rows},
            settings.target,
            Options(max_shard_bytes=settings.max_shard_bytes),
            companions,
            texts=files,
        )
    return dataclasses.replace(extension, summary=summary)


def _write_files(folder: Path, files: dict[str, bytes], companions: list[Path]) -> None:
    for path in companions:
        shutil.copyfile(path, folder / path.name)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _make_record(settings: NewTokenSettings, extension: Extension, learned: Learned) -> bytes:
    """Return the JSON file that records how the folder was made."""
    has_json = (settings.base / TOKENIZER_JSON).is_file()
    record: dict[str, Any] = {
        "base": str(settings.base),
        "base_tokenizer": fingerprint_tokenizer(settings.base if has_json else settings.base / TOKENIZER_MODEL),
        "ascend_cpt": __version__,
        "kind": extension.kind,
        "first_id": extension.first_id,
        "num_tokens": extension.num_tokens,
        "vocab_size": extension.num_rows,
        "settings": {
            "init": settings.method,
            "seed": settings.seed,
            "min_count": settings.min_count,
            "max_chars": settings.max_chars,
            "max_bytes": settings.max_bytes,
            "heldout_share": settings.held_out_share if settings.held_out is None else None,
        },
        "corpus": [
            {"path": file.name, "size_bytes": file.size_bytes, "fingerprint": fingerprint_file(file)}
            for file in settings.corpus.find_files()
        ],
        "comparisons": {name: comparison.to_record() for name, comparison in extension.comparisons.items()},
        "tokens": [
            {"id": extension.first_id + k, "text": piece.text, "parts": list(piece.parts)}
            for k, piece in enumerate(learned.pieces)
        ],
    }
    return (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode("utf-8")
