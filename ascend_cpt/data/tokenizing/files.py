"""Reads tokenizer files: vocabulary size, EOD, padding and BOS ids, and a fingerprint.

Types are named as in Megatron and MindSpeed-LLM: `PretrainedFromHF` (a folder with tokenizer.json),
`SentencePiece` (tokenizer.model of Llama 2) and `TikToken` (tokenizer.model of Llama 3, qwen.tiktoken).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

from ascend_cpt.data.tokenizing.base import TokenizerFile
from ascend_cpt.data.tokenizing.info import TokenizerInfo
from ascend_cpt.data.tokenizing.names import HUGGING_FACE, SENTENCE_PIECE, TIKTOKEN, TOKENIZER_TYPES
from ascend_cpt.errors import DataError

logger = logging.getLogger(__name__)


def open_tokenizer(
    type_name: str, path: str | Path, *, eod_token: str | None = None, parse_control: bool = False
) -> TokenizerFile:
    """Read the tokenizer at `path` (a Hugging Face folder, or a model file for the other types).

    Raises:
        DataError: there is no tokenizer, it has another type, or it has no end-of-document token.
    """
    assert type_name in TOKENIZER_TYPES
    path = Path(path)
    if type_name == HUGGING_FACE:
        return _open_hugging_face(path, eod_token, parse_control)
    if not path.is_file():
        raise DataError(f"{path}: no such tokenizer model file (--tokenizer-model, of type {type_name})")
    if type_name == SENTENCE_PIECE:
        if parse_control:
            raise DataError(
                "--parse-special-tokens: not possible with SentencePiece models; use the Hugging Face folder"
            )
        return _open_sentence_piece(path, eod_token)
    return _open_tiktoken(path, eod_token, parse_control)


def fingerprint_tokenizer(path: str | Path) -> str:
    """Return the manifest fingerprint of the tokenizer at `path` (a Hugging Face folder or a model file).

    Raises:
        DataError: there is no readable tokenizer.
    """
    path = Path(path)
    if path.is_dir():
        return _fingerprint_json(_read_json(path / "tokenizer.json"))
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: the tokenizer cannot be read: {error.strerror}") from error


def _open_hugging_face(folder: Path, eod_token: str | None, parse_control: bool) -> TokenizerFile:
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such tokenizer folder; --tokenizer-name-or-path must be a local Hugging Face folder"
        )
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise DataError(
            f"{folder}: contains no tokenizer.json; for a tokenizer.model give --tokenizer-type {SENTENCE_PIECE} "
            f"(Llama 2) or {TIKTOKEN} (Llama 3) and --tokenizer-model"
        )
    content = _read_json(path)
    try:
        ids = _read_vocabulary(content["model"]["vocab"])
        added = {token["content"]: token for token in content.get("added_tokens") or ()}
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a Hugging Face tokenizer ({error!r})") from error
    ids |= {text: token["id"] for text, token in added.items()}
    named = _read_named_tokens(folder)
    control = tuple(text for text, token in added.items() if token.get("special"))
    eod_id = _find_eod(ids, eod_token or named.get("eos_token"), path)
    bos_id = ids.get(named.get("bos_token", ""))
    candidates = [ids.get(named.get(name, "")) for name in ("pad_token", "unk_token")]
    info = TokenizerInfo(
        type=HUGGING_FACE,
        name=folder.resolve().name,
        fingerprint=_fingerprint_json(content),
        vocab_size=max(ids.values()) + 1,
        eod_id=eod_id,
        pad_id=_choose_pad([*candidates, *_specials_for_padding(control, ids)], eod_id, bos_id),
        bos_id=bos_id,
    )
    return TokenizerFile(path=path, info=info, control_strings=control, parse_control=parse_control)


def _open_sentence_piece(path: Path, eod_token: str | None) -> TokenizerFile:
    import sentencepiece

    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"{path}: not a SentencePiece model; for a Llama 3 tokenizer.model, use --tokenizer-type {TIKTOKEN}"
        ) from error
    pieces = {model.id_to_piece(k): k for k in range(model.vocab_size())}
    eod_id = _find_eod(pieces, eod_token or (model.id_to_piece(model.eos_id()) if model.eos_id() >= 0 else None), path)
    bos_id = model.bos_id() if model.bos_id() >= 0 else None
    info = TokenizerInfo(
        type=SENTENCE_PIECE,
        name=path.name,
        fingerprint=fingerprint_tokenizer(path),
        vocab_size=model.vocab_size(),
        eod_id=eod_id,
        pad_id=_choose_pad([model.pad_id(), model.unk_id()], eod_id, bos_id),
        bos_id=bos_id,
    )
    control = tuple(piece for piece, k in pieces.items() if model.is_control(k) or model.is_unknown(k))
    return TokenizerFile(path=path, info=info, control_strings=control)


def _open_tiktoken(path: Path, eod_token: str | None, parse_control: bool) -> TokenizerFile:
    from ascend_cpt.data.tokenizing.tiktoken_engine import find_family

    family, num_ranks = find_family(path)
    specials = family.special_tokens(num_ranks)
    eod_id = _find_eod(specials, eod_token or family.eod_token, path)
    bos_id = specials.get(family.bos_token) if family.bos_token else None
    info = TokenizerInfo(
        type=TIKTOKEN,
        name=path.name,
        fingerprint=fingerprint_tokenizer(path),
        vocab_size=num_ranks + len(specials),
        eod_id=eod_id,
        pad_id=_choose_pad([specials[family.pad_token]], eod_id, bos_id),
        bos_id=bos_id,
    )
    return TokenizerFile(path=path, info=info, control_strings=tuple(specials), parse_control=parse_control)


def _read_vocabulary(vocabulary: Any) -> dict[str, int]:
    """Return text → id. Unigram models store a list of [text, score] pairs."""
    if isinstance(vocabulary, dict):
        return dict(vocabulary)
    return {text: k for k, (text, _score) in enumerate(vocabulary)}


def _read_named_tokens(folder: Path) -> dict[str, str]:
    """Return eos_token, pad_token, ... from tokenizer_config.json, or else from special_tokens_map.json."""
    named: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            for key, token in _read_json(folder / name).items():
                text = token.get("content") if isinstance(token, dict) else token
                if key.endswith("_token") and isinstance(text, str):
                    named[key] = text
    return named


def _find_eod(ids: Mapping[str, int], token: str | None, path: Path) -> int:
    if token is None:
        raise DataError(f"{path}: the tokenizer has no end-of-document token (eos_token); set one with --eod-token")
    if token not in ids:
        raise DataError(f"{path}: the end-of-document token {token!r} is not in the vocabulary; see --eod-token")
    return ids[token]


def _specials_for_padding(control: Iterable[str], ids: Mapping[str, int]) -> list[int]:
    """Return the control-token ids, with padding tokens first."""
    return [ids[text] for text in sorted(control, key=lambda text: ("pad" not in text.lower(), ids[text]))]


def _choose_pad(candidates: Iterable[int | None], eod_id: int, bos_id: int | None) -> int:
    """Return the first candidate that is neither EOD nor BOS, which the loss would otherwise ignore."""
    for candidate in candidates:
        if candidate is not None and candidate >= 0 and candidate not in (eod_id, bos_id):
            return candidate
    pad_id = next(k for k in range(3) if k not in (eod_id, bos_id))
    logger.warning("the tokenizer has no padding token: padding rows with id %d, which also occurs in text", pad_id)
    return pad_id


def _fingerprint_json(content: Mapping[str, Any]) -> str:
    """Return a SHA-256 of the parts of a tokenizer.json that determine the ids, independent of formatting."""
    model = dict(content.get("model") or {})
    model["merges"] = [merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges") or ()]
    decisive = {name: content.get(name) for name in ("added_tokens", "normalizer", "pre_tokenizer")} | {"model": model}
    return hashlib.sha256(orjson.dumps(decisive, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = orjson.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a JSON object")
    return content
