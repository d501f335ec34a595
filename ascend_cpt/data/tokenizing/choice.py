"""Which engine encodes: the fast one where it gives the reference engine's ids, the reference engine elsewhere."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ascend_cpt.data.tokenizing.base import Engine, TokenizerFile
from ascend_cpt.data.tokenizing.gigatoken_engine import GigatokenEngine, UnsupportedTokenizerError
from ascend_cpt.data.tokenizing.names import ENGINES
from ascend_cpt.data.tokenizing.nasty_texts import NASTY_TEXTS
from ascend_cpt.data.tokenizing.reference_engines import make_reference_engine

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EngineChoice:
    """The engine of a run and what its trust rests on; kept in the manifest."""

    name: str
    version: str
    check: str
    """`reference` (nothing to check), `same ids`, or what differed."""
    num_checked_texts: int = 0
    num_checked_tokens: int = 0

    def to_record(self) -> dict[str, Any]:
        return asdict(self)


def make_engine(file: TokenizerFile, choice: EngineChoice) -> Engine:
    """Make the chosen engine."""
    return GigatokenEngine(file) if choice.name == "gigatoken" else make_reference_engine(file)


def choose_engine(file: TokenizerFile, requested: str, sample: Sequence[str]) -> EngineChoice:
    """Choose between gigatoken and the reference engine.

    With `auto`, gigatoken has to give the reference's ids on NASTY_TEXTS, on the control-token strings and on `sample`
    (documents of this corpus). A difference is told as a warning and the reference engine is taken. With `gigatoken` a
    difference is told and overruled.
    """
    assert requested in ENGINES
    reference = make_reference_engine(file)
    if requested == "reference":
        return _describe(reference, "reference")
    try:
        fast = GigatokenEngine(file, reference)
    except UnsupportedTokenizerError as error:
        logger.warning("tokenizing with %s: gigatoken cannot load this tokenizer (%s)", reference.name, error)
        return _describe(reference, f"reference: gigatoken cannot load it ({error})")
    texts = [*NASTY_TEXTS, *(f"a{text}b {text}" for text in file.control_strings[:64]), *sample]
    difference, num_tokens = _compare(fast, reference, texts)
    if difference and requested == "auto":
        logger.warning("tokenizing with %s: gigatoken gives other ids for %s", reference.name, difference)
        return _describe(reference, f"reference: gigatoken differs for {difference}", len(texts), num_tokens)
    if difference:
        logger.warning("gigatoken gives other ids than %s for %s; used all the same", reference.name, difference)
    check = f"overruled: differs for {difference}" if difference else "same ids"
    return _describe(fast, check, len(texts), num_tokens)


def _compare(fast: Engine, reference: Engine, texts: Sequence[str]) -> tuple[str, int]:
    """Return the first text with other ids (shortened; empty when there is none) and the number of reference tokens."""
    got, expected = fast.encode_batch(texts), reference.encode_batch(texts)
    for k, text in enumerate(texts):
        ids = got.ids[got.offsets[k] : got.offsets[k + 1]]
        if not np.array_equal(ids, expected.ids[expected.offsets[k] : expected.offsets[k + 1]]):
            return ascii(text[:80]), int(expected.offsets[-1])
    return "", int(expected.offsets[-1])


def _describe(engine: Engine, check: str, num_texts: int = 0, num_tokens: int = 0) -> EngineChoice:
    return EngineChoice(
        name=engine.name,
        version=importlib.metadata.version(engine.name),
        check=check,
        num_checked_texts=num_texts,
        num_checked_tokens=num_tokens,
    )
