"""Chooses the tokenizing engine: the fast one if it produces the same ids as the reference engine."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ascend_cpt.data.tokenizing.base import Encoded, Engine, TokenizerFile
from ascend_cpt.data.tokenizing.gigatoken_engine import GigatokenEngine, UnsupportedTokenizerError
from ascend_cpt.data.tokenizing.names import ENGINES
from ascend_cpt.data.tokenizing.probe_texts import PROBE_TEXTS
from ascend_cpt.data.tokenizing.reference_engines import make_reference_engine

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EngineChoice:
    """The run's engine and the result of its check, which are stored in the manifest."""

    name: str
    version: str
    check: str
    """`reference` (not checked), `same ids`, or the difference."""
    num_checked_texts: int = 0
    num_checked_tokens: int = 0

    def to_record(self) -> dict[str, Any]:
        return asdict(self)


_last_made: dict[tuple[TokenizerFile, str], Engine] = {}


def load_engine(file: TokenizerFile, choice: EngineChoice) -> Engine:
    """Return the chosen engine, caching the last one because loading a large vocabulary takes half a second."""
    key = (file, choice.name)
    if key not in _last_made:
        _keep(file, GigatokenEngine(file) if choice.name == "gigatoken" else make_reference_engine(file))
    return _last_made[key]


def choose_engine(file: TokenizerFile, requested: str, sample: Sequence[str]) -> EngineChoice:
    """Choose between gigatoken and the reference engine.

    Both engines encode PROBE_TEXTS, the control-token strings and `sample` (documents from this corpus). If the ids
    differ, a warning is logged: `auto` falls back to the reference engine, while `gigatoken` uses gigatoken anyway.
    """
    assert requested in ENGINES
    if requested == "reference":
        return _keep(file, make_reference_engine(file), "reference")
    texts = [*PROBE_TEXTS, *(f"a{text}b {text}" for text in file.control_strings[:64]), *sample]
    # The reference engine releases the GIL, so it can encode while gigatoken is loaded.
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(_encode_with_reference, file, texts)
        try:
            fast, problem = GigatokenEngine(file), ""
        except UnsupportedTokenizerError as error:
            # The lines after the first one give gigatoken's own source location.
            fast, problem = None, next(iter(str(error).splitlines()), "")
        reference, expected = future.result()
    if fast is None:
        logger.warning("tokenizing with %s: gigatoken cannot load this tokenizer (%s)", reference.name, problem)
        return _keep(file, reference, f"reference: gigatoken cannot load it ({problem})")
    fast.reference = reference
    difference = _find_difference(fast, texts, expected)
    counts = (len(texts), int(expected.offsets[-1]))
    if difference and requested == "auto":
        logger.warning("tokenizing with %s: gigatoken gives different ids for %s", reference.name, difference)
        return _keep(file, reference, f"reference: gigatoken differs for {difference}", *counts)
    if difference:
        logger.warning("using gigatoken as requested; %s gives different ids for %s", reference.name, difference)
    check = f"used as requested, although its ids differ for {difference}" if difference else "same ids"
    return _keep(file, fast, check, *counts)


def _encode_with_reference(file: TokenizerFile, texts: Sequence[str]) -> tuple[Engine, Encoded]:
    reference = make_reference_engine(file)
    return reference, reference.encode_batch(texts)


def _find_difference(fast: Engine, texts: Sequence[str], expected: Encoded) -> str:
    """Return the first text, truncated, whose ids differ from `expected`, or "" if there is none."""
    got = fast.encode_batch(texts)
    for k, text in enumerate(texts):
        ids = got.ids[got.offsets[k] : got.offsets[k + 1]]
        if not np.array_equal(ids, expected.ids[expected.offsets[k] : expected.offsets[k + 1]]):
            return ascii(text[:80])
    return ""


def _keep(
    file: TokenizerFile, engine: Engine, check: str = "", num_texts: int = 0, num_tokens: int = 0
) -> EngineChoice:
    """Cache the engine for `load_engine` and return a description of the choice."""
    _last_made.clear()
    _last_made[file, engine.name] = engine
    return EngineChoice(
        name=engine.name,
        version=importlib.metadata.version(engine.name),
        check=check,
        num_checked_texts=num_texts,
        num_checked_tokens=num_tokens,
    )
