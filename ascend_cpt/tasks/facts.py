"""Invented facts for needle-in-a-haystack tasks, each with a statement, a question and possible answers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

# fmt: off
CITIES = (
    "Amsterdam", "Athens", "Bangkok", "Barcelona", "Beijing", "Berlin", "Bogota", "Boston", "Brussels",
    "Budapest", "Cairo", "Chengdu", "Chicago", "Copenhagen", "Dakar", "Delhi", "Dublin", "Geneva", "Hanoi",
    "Harbin", "Helsinki", "Istanbul", "Jakarta", "Kyoto", "Lagos", "Lima", "Lisbon", "London", "Madrid",
    "Melbourne", "Montreal", "Moscow", "Nairobi", "Nanjing", "Oslo", "Paris", "Prague", "Rome", "Santiago",
    "Seoul", "Shanghai", "Sydney", "Tokyo", "Toronto", "Vienna", "Warsaw",
)
# fmt: on
SUBJECTS = (
    "special magic number of",
    "code of the main gate in",
    "number of the locker at the station of",
    "telephone number of the town hall of",
)
SMALLEST_VALUE, NUM_VALUES = 1_000_000, 9_000_000
"""Values have seven digits."""
MAX_DRAWS = 2000
"""Values that are drawn in search of answers with equally many tokens."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A fact with a random value."""

    needle: str
    """The sentence to hide, on a line of its own."""
    question: str
    """Question and beginning of the answer, up to the value."""
    answers: tuple[str, ...]
    """The right value and others, each after a space, with equally many tokens."""
    gold: int
    """Index of the right value."""


def make_fact(generator: random.Random, num_answers: int, encode_answer: Callable[[str, str], Sequence[int]]) -> Fact:
    """Return a random fact.

    Args:
        generator: Source of random numbers. Only `random` is used, which is the same in all Python versions.
        num_answers: Number of answers.
        encode_answer: (question, answer) → token ids of the answer after the question.

    Raises:
        ValueError: too few distinct values have the same number of tokens.
    """
    subject = f"{_choose(generator, SUBJECTS)} {_choose(generator, CITIES)}"
    question = f"\n\nQuestion: What is the {subject}?\nAnswer: The {subject} is"
    right = _draw_value(generator)
    ids = tuple(encode_answer(question, right))
    # Compare token ids, because a tokenizer that lacks some digits could encode different values equally.
    found = {ids: right}
    for _ in range(MAX_DRAWS):
        if len(found) == num_answers:
            break
        value = _draw_value(generator)
        other = tuple(encode_answer(question, value))
        if len(other) == len(ids):
            found.setdefault(other, value)
    if len(found) < num_answers:
        raise ValueError(f"only {len(found)} of {MAX_DRAWS} values have {len(ids)} tokens and differ; lower choices")
    # The answer must not always come first, because the first one wins ties.
    gold = int(generator.random() * num_answers)
    answers = list(found.values())[1:]
    answers.insert(gold, right)
    return Fact(needle=f"\nThe {subject} is{right}.\n", question=question, answers=tuple(answers), gold=gold)


def _choose(generator: random.Random, items: Sequence[T]) -> T:
    return items[int(generator.random() * len(items))]


def _draw_value(generator: random.Random) -> str:
    return f" {SMALLEST_VALUE + int(generator.random() * NUM_VALUES)}"
