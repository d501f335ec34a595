"""Needle in a haystack: a sentence with a random fact inside a long text, and a question about the fact at the end.

Haystacks are token ids from a packed dataset, to which the encoded needle and question are added. A cell is a pair of
length and depth. Its items depend only on these two, the seed, the number of depths and the dataset, so stages with
different lists of lengths have the same items in the cells they share.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ascend_cpt.config.task_schema import TaskConfig
from ascend_cpt.errors import DataError
from ascend_cpt.tasks.check import METRICS
from ascend_cpt.tasks.facts import Fact, make_fact
from ascend_cpt.tasks.load import Encode, Encoder, Request, Task, check_task
from ascend_cpt.tasks.records import raise_problems

ReadTokens = Callable[[int, int], npt.NDArray[np.int32]]
"""(start, count) → that many token ids of the dataset from `start` on."""

DEFAULT_DEPTHS, DEFAULT_PER_CELL, DEFAULT_CHOICES = 11, 1, 4
NUM_DEFAULT_LENGTHS = 5
ENDINGS = (".", ".\n", ".\n\n", "\n", "\n\n", "。", "。\n")
"""Ends of sentences and paragraphs, after which a needle is inserted if they are one token."""


@dataclass(frozen=True, kw_only=True)
class _Item:
    """A needle without its haystack."""

    length: int
    depth: float
    number: int
    """Number of the needle in its cell, from 0."""
    fact: Fact
    needle: tuple[int, ...]
    question: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    haystack_tokens: int
    """Tokens of the haystack, so that everything together has `length` tokens; negative if they do not fit."""

    @property
    def cell(self) -> str:
        return f"{self.length}/{self.depth:.4g}"


def load_needle_task(
    name: str,
    config: TaskConfig,
    encode: Encode,
    read_tokens: ReadTokens,
    *,
    seq_length: int,
    prefix_token: int | None,
    num_tokens: int,
    eod_token: int | None = None,
    add_prefix: bool = False,
) -> Task:
    """Make the items of a needle task.

    Args:
        name: Name of the task.
        config: The task's configuration, of kind `needle`. `path` is only used in messages.
        encode: Encodes text to token ids, without special tokens.
        read_tokens: Reads the dataset at `path`.
        seq_length: Length of the network's input.
        prefix_token: The BOS token, or EOS if there is none.
        num_tokens: Number of tokens in the dataset.
        eod_token: The token that ends a document. Needles may be inserted after it.
        add_prefix: Begin every context with `prefix_token`, for tokenizers that add BOS.

    Raises:
        ConfigError: settings that cannot work.
        DataError: lengths are too short for a needle and its question, or the dataset is shorter than a haystack.
    """
    check_task(name, config, seq_length)
    encoder = Encoder(encode=encode, prefix_token=None, add_prefix=False)
    prefix = (prefix_token,) if add_prefix and prefix_token is not None else ()
    items = _choose_items(name, config, encoder, seq_length, len(prefix))
    longest = max(item.haystack_tokens for item in items)
    if longest > num_tokens:
        raise DataError(
            f"{config.path}: has {num_tokens} tokens, but the longest haystack of task {name} needs {longest}; use a "
            "larger dataset or shorter lengths"
        )
    endings = _find_endings(encode) | ({eod_token} if eod_token is not None else set())
    shared: dict[int, int] = {}
    requests: list[Request] = []
    haystack: list[int] = []
    for index, item in enumerate(items):
        if index == 0 or (item.length, item.number) != (items[index - 1].length, items[index - 1].number):
            haystack = _read_haystack(items, item, config.seed or 0, read_tokens, num_tokens)
        context = _join(item, haystack[: item.haystack_tokens], prefix, endings, _count_depths(config))
        # Use one object for all uses of a token, because contexts are long and hold pointers.
        context = tuple(shared.setdefault(token, token) for token in context)
        requests += [
            Request(
                item=index,
                choice=choice,
                context=context,
                continuation=ids,
                num_bytes=len(answer.strip()),
                num_chars=len(answer.strip()),
            )
            for choice, (answer, ids) in enumerate(zip(item.fact.answers, item.answers, strict=True))
        ]
    return Task(
        name=name,
        kind=config.kind,
        metric=config.metric or METRICS[config.kind][0],
        requests=tuple(requests),
        num_items=len(items),
        gold=tuple(item.fact.gold for item in items),
        items=tuple(
            f"{config.path}: {item.length} tokens, depth {item.depth:.4g}, needle {item.number + 1}" for item in items
        ),
        too_long=(),
        cells=tuple(item.cell for item in items),
    )


def _choose_items(name: str, config: TaskConfig, encoder: Encoder, seq_length: int, num_prefix: int) -> list[_Item]:
    """Return the items ordered by length, number and depth.

    Raises:
        DataError: lengths are too short (all are listed).
    """
    items: list[_Item] = []
    problems: list[str] = []
    num_depths = _count_depths(config)
    for length in config.lengths or _list_default_lengths(seq_length):
        try:
            made = [
                _make_item(config, encoder, length, depth, number, num_prefix)
                for number in range(config.per_cell or DEFAULT_PER_CELL)
                for depth in list_depths(num_depths)
            ]
        except ValueError as error:
            raise DataError(f"task {name}: {error}") from None
        # At least one token between two depths.
        missing = num_depths - min(item.haystack_tokens for item in made)
        if missing <= 0:
            items += made
        elif config.lengths or length == seq_length:
            problems.append(
                f"task {name}: {length} tokens are too few for a needle, its question and {num_depths} depths; "
                f"use at least {length + missing}"
            )
    # Default lengths that are too short are dropped, unless all of them are.
    raise_problems(f"task {name}", problems if config.lengths or not items else [])
    return items


def list_depths(num_depths: int) -> list[float]:
    """Return `num_depths` evenly spaced depths from 0 (start) to 1 (end), or 0.5 for a single one."""
    return [0.5] if num_depths == 1 else [index / (num_depths - 1) for index in range(num_depths)]


def _count_depths(config: TaskConfig) -> int:
    return config.depths or DEFAULT_DEPTHS


def _list_default_lengths(seq_length: int) -> list[int]:
    """Return the largest powers of two up to `seq_length`, and `seq_length` itself."""
    lengths = {2**power for power in range(seq_length.bit_length())} | {seq_length}
    return sorted(lengths)[-NUM_DEFAULT_LENGTHS:]


def _make_item(config: TaskConfig, encoder: Encoder, length: int, depth: float, number: int, num_prefix: int) -> _Item:
    generator = random.Random(f"{config.seed or 0}/{length}/{depth:.4g}/{number}")
    fact = make_fact(
        generator,
        config.choices or DEFAULT_CHOICES,
        lambda question, answer: encoder.encode_pairs(question, [answer])[0][1],
    )
    pairs = encoder.encode_pairs(fact.question, fact.answers)
    needle, question, answers = tuple(encoder.encode(fact.needle)), pairs[0][0], tuple(ids for _, ids in pairs)
    return _Item(
        length=length,
        depth=depth,
        number=number,
        fact=fact,
        needle=needle,
        question=question,
        answers=answers,
        haystack_tokens=length - num_prefix - len(needle) - len(question) - len(answers[0]),
    )


def _find_endings(encode: Encode) -> set[int]:
    """Return the tokens that by themselves end a sentence or paragraph."""
    word = list(encode("a"))
    endings = set()
    for text in ENDINGS:
        ids = list(encode(f"a{text}"))
        if ids[:-1] == word:
            endings.add(ids[-1])
    return endings


def _read_haystack(
    items: Iterable[_Item], item: _Item, seed: int, read_tokens: ReadTokens, num_tokens: int
) -> list[int]:
    """Return the tokens for a length and number. Only the needle and its place differ between depths."""
    key = (item.length, item.number)
    count = max(other.haystack_tokens for other in items if (other.length, other.number) == key)
    generator = random.Random(f"{seed}/{item.length}/{item.number}")
    start = int(generator.random() * (num_tokens - count + 1))
    haystack: list[int] = read_tokens(start, count).tolist()
    assert len(haystack) == count, "the dataset has num_tokens tokens"
    return haystack


def _join(
    item: _Item, haystack: Sequence[int], prefix: tuple[int, ...], endings: set[int], num_depths: int
) -> tuple[int, ...]:
    """Return the context: the haystack with the needle at its depth, and the question."""
    place = find_place(haystack, item.depth, endings, reach=len(haystack) // (2 * num_depths))
    return (*prefix, *haystack[:place], *item.needle, *haystack[place:], *item.question)


def find_place(haystack: Sequence[int], depth: float, endings: set[int], *, reach: int) -> int:
    """Return the index at which a needle is inserted.

    The index follows the last ending within `reach` tokens before the depth, or is at the depth if there is none. A
    needle at depth 0 is at the start, and one at depth 1 is at the end.
    """
    place = round(depth * len(haystack))
    if 0 < depth < 1:
        for index in range(place, max(place - reach, 1) - 1, -1):
            if haystack[index - 1] in endings:
                return index
    return place
