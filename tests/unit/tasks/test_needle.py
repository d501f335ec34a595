"""Needles are at their depths, choices differ only in the value, and every bad setting is one clear error."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ascend_cpt.config.loader import load_config
from ascend_cpt.config.task_schema import TaskConfig
from ascend_cpt.errors import ConfigError, DataError
from ascend_cpt.tasks.check import NEEDLE_KEYS, find_task_problems
from ascend_cpt.tasks.facts import make_fact
from ascend_cpt.tasks.load import Request, Task
from ascend_cpt.tasks.needle import find_place, list_depths, load_needle_task
from ascend_cpt.tasks.score import TaskScore, score_task

EOD, BOS = 300, 301
NUM_TOKENS = 50_000
LINE = re.compile(rb"\nThe ([a-z ]+ of|[a-z ]+ in) ([A-Z][a-z]+) is (\d{7})\.\n")


def make_dataset() -> npt.NDArray[np.int32]:
    """Return documents of random words without capitals and digits; sentences end with a period."""
    generator = np.random.default_rng(0)
    ids = generator.integers(ord("a"), ord("z") + 1, NUM_TOKENS, dtype=np.int32)
    ids[generator.random(NUM_TOKENS) < 0.2] = ord(" ")
    ids[generator.random(NUM_TOKENS) < 0.05] = ord(".")
    ids[generator.random(NUM_TOKENS) < 0.001] = EOD
    return ids


DATASET = make_dataset()


def encode(text: str) -> list[int]:
    """A tokenizer of bytes."""
    return list(text.encode("utf-8"))


def encode_digits_unevenly(text: str) -> list[int]:
    """As `encode`, but `11` is one token."""
    return [400 if part == "11" else ord(part) for part in re.findall(r"11|.|\n", text)]


def load(*, seq_length: int = 1024, num_tokens: int = NUM_TOKENS, encode: Any = encode, **fields: Any) -> Task:
    others = {key: fields.pop(key) for key in ("prefix_token", "eod_token", "add_prefix") if key in fields}
    config = TaskConfig(**{"path": "packed/books", "kind": "needle", **fields})
    return load_needle_task(
        "needle",
        config,
        encode,
        lambda start, count: DATASET[start : start + count],
        seq_length=seq_length,
        num_tokens=num_tokens,
        **{"prefix_token": None, **others},
    )


def to_bytes(ids: Sequence[int]) -> bytes:
    return bytes(id if id < 256 else ord("#") for id in ids)


def group(task: Task) -> list[list[Request]]:
    found: list[list[Request]] = [[] for _ in range(task.num_items)]
    for request in task.requests:
        found[request.item].append(request)
    return found


def score(task: Task, log_likelihoods: Sequence[float], greedy: Sequence[bool] | None = None) -> TaskScore:
    flags = np.zeros(len(task.requests), bool) if greedy is None else np.array(greedy)
    return score_task(task, np.array(log_likelihoods, dtype=float), flags)


def is_right(task: Task) -> list[bool]:
    return [request.choice == task.gold[request.item] for request in task.requests]


def test_needles_are_at_their_depths() -> None:
    task = load(lengths=(512, 1000), depths=5, per_cell=3)
    assert task.num_items == 2 * 5 * 3 and len(task.requests) == 4 * task.num_items
    assert set(Counter(task.cells).values()) == {3}
    assert list(dict.fromkeys(task.cells)) == [
        f"{length}/{depth}" for length in (512, 1000) for depth in ("0", "0.25", "0.5", "0.75", "1")
    ]
    for cell, requests in zip(task.cells, group(task), strict=True):
        length, depth = int(cell.split("/")[0]), float(cell.split("/")[1])
        text = to_bytes(requests[0].context)
        (needle,) = LINE.finditer(text)
        haystack, question = text[: text.rindex(b"\n\nQuestion")], text[text.rindex(b"\n\nQuestion") :]
        assert question.endswith(b"\nAnswer: The %b %b is" % (needle[1], needle[2])) and b"?" in question
        num_tokens = len(haystack) - len(needle[0])
        place, expected = needle.start(), round(depth * num_tokens)
        if depth in (0, 1):
            assert place == expected
        else:
            assert expected - num_tokens // 10 <= place <= expected
            assert haystack[place - 1 : place] == b".", "between two sentences"
        assert all(len(request.context) + len(request.continuation) == length for request in requests)


def test_text_is_that_of_the_dataset() -> None:
    task = load(lengths=(600,), depths=4, eod_token=EOD)
    contexts = [to_bytes(requests[0].context) for requests in group(task)]
    without = [LINE.sub(b"", text.partition(b"\n\nQuestion")[0]) for text in contexts]
    assert all(text in to_bytes(DATASET.tolist()) for text in without)
    assert len({text[: min(map(len, without))] for text in without}) == 1, (
        "all depths of a length have the same haystack"
    )


def test_only_the_value_differs_between_choices() -> None:
    task = load(lengths=(700,), choices=5, per_cell=2)
    golds = set()
    for requests, gold in zip(group(task), task.gold, strict=True):
        assert len({request.context for request in requests}) == 1
        values = [to_bytes(request.continuation) for request in requests]
        assert len(set(values)) == 5 and all(re.fullmatch(rb" \d{7}", value) for value in values)
        (needle,) = LINE.findall(to_bytes(requests[0].context))
        assert values[gold] == b" " + needle[2]
        golds.add(gold)
        assert {(request.num_bytes, request.num_chars) for request in requests} == {(7, 7)}
    assert golds == set(range(5)), "the right answer is not always at one place"


def test_choices_have_equally_many_tokens() -> None:
    task = load(lengths=(700,), encode=encode_digits_unevenly, per_cell=3)
    lengths = [{len(request.continuation) for request in requests} for requests in group(task)]
    assert all(len(each) == 1 for each in lengths) and len(set(map(min, lengths))) > 1


def test_items_are_fixed() -> None:
    first, second = load(lengths=(512, 1024)), load(lengths=(512, 1024))
    assert first == second
    assert [request for request in first.requests if len(request.context) < 512] == list(load(lengths=(512,)).requests)
    assert load(lengths=(512, 1024), seed=1).requests != first.requests
    contexts = {requests[0].context for requests in group(load(lengths=(512,), depths=1, per_cell=5))}
    assert len({LINE.sub(b"", to_bytes(context))[:100] for context in contexts}) == 5, "each needle has its haystack"


def test_default_lengths() -> None:
    def list_lengths(seq_length: int) -> list[int]:
        return list(dict.fromkeys(int(cell.split("/")[0]) for cell in load(seq_length=seq_length).cells))

    assert list_lengths(16384) == [1024, 2048, 4096, 8192, 16384]
    assert list_lengths(12288) == [1024, 2048, 4096, 8192, 12288]
    assert list_lengths(512) == [256, 512], "shorter ones have no room"
    assert load().metric == "acc" and load(metric="exact").metric == "exact"


def test_bos() -> None:
    task = load(lengths=(512,), prefix_token=BOS, add_prefix=True)
    assert all(request.context[0] == BOS and BOS not in request.context[1:] for request in task.requests)
    assert all(len(request.context) + len(request.continuation) == 512 for request in task.requests)
    assert load(lengths=(512,), prefix_token=BOS).requests == load(lengths=(512,)).requests


def test_place() -> None:
    haystack = [0, 9, 0, 0, 0, 9, 0, 0, 0, 0]
    assert [find_place(haystack, depth, {9}, reach=3) for depth in (0, 0.2, 0.5, 0.8, 1)] == [0, 2, 2, 6, 10]
    assert find_place(haystack, 0.5, {9}, reach=2) == 5, "no sentence ends there"
    assert find_place(haystack, 0.5, set(), reach=5) == 5
    assert list_depths(1) == [0.5] and list_depths(3) == [0, 0.5, 1]


def test_needles_are_placed_after_the_end_of_a_document() -> None:
    """`e` ends a document here, so that there are enough of them."""

    def count(**tokens: int) -> Counter[int]:
        requests = group(load(lengths=(1024,), per_cell=10, **tokens))
        return Counter(each.context[to_bytes(each.context).index(b"\nThe ") - 1] for each, *_ in requests[1:-1])

    assert count()[ord("e")] == 0 < count(eod_token=ord("e"))[ord("e")]


def test_perfect_and_random_scores() -> None:
    task = load(lengths=(512, 1024), depths=4, per_cell=50)
    right = is_right(task)
    perfect = score(task, [-1.0 if each else -2.0 for each in right], right)
    assert perfect.score == perfect.metrics["acc"] == perfect.metrics["exact"] == 1.0
    cells = [f"{length}/{depth}" for length in (512, 1024) for depth in ("0", "0.3333", "0.6667", "1")]
    assert list(perfect.metrics) == [
        "acc",
        "exact",
        *(f"acc/{cell}" for cell in cells),
        *(f"exact/{cell}" for cell in cells),
    ]
    assert set(perfect.metrics.values()) == {1.0} and list(perfect.standard_errors) == ["acc", "exact"]
    generator = np.random.default_rng(1)
    chance = score(task, generator.random(len(right)).tolist())
    assert chance.metrics["acc"] == pytest.approx(1 / 4, abs=0.06) and chance.metrics["exact"] == 0.0
    constant = score(task, [0.0] * len(right))
    assert constant.metrics["acc"] == pytest.approx(1 / 4, abs=0.06), "ties are not won"


def test_cells_have_their_own_scores() -> None:
    task = load(lengths=(512, 1024), depths=2, per_cell=2)
    right = is_right(task)
    found = [item not in (0, 7) for item in range(8)]  # items: 512/0, 512/1, 512/0, 512/1, 1024/0, ...
    result = score(
        task,
        [-1.0 if right[k] == found[each.item] else -2.0 for k, each in enumerate(task.requests)],
        [right[k] and found[each.item] for k, each in enumerate(task.requests)],
    )
    for metric in ("acc", "exact"):
        shares = [result.metrics[f"{metric}/{cell}"] for cell in ("512/0", "512/1", "1024/0", "1024/1")]
        assert shares == [0.5, 1.0, 1.0, 0.5] and result.metrics[metric] == 0.75
    invalid = score(task, [float("nan")] + [0.0] * (len(right) - 1))
    assert invalid.metrics.keys() == result.metrics.keys() and np.isnan(list(invalid.metrics.values())).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lengths": (512, 2048)}, "task needle: lengths: 2048 is more than seq_length 1024; remove it, or raise"),
        ({"lengths": (512, 600, 512)}, "lengths: 512 is listed more than once"),
        ({"choices": 1}, "choices: 1 answer cannot be compared with others; set at least 2"),
        ({"metric": "acc_norm"}, "metric: needle has no acc_norm; choose from acc, exact"),
        ({"few_shot": 1, "few_shot_path": "x"}, "few_shot: has no effect on a task of kind needle; remove it"),
        ({"max_items": 3}, "max_items: has no effect on a task of kind needle"),
    ],
)
def test_bad_settings(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(**fields)


def test_every_bad_setting_is_listed() -> None:
    config = TaskConfig(path="x", kind="needle", lengths=(4, 2048, 4096, 4), choices=1, schema="mmlu", description="")
    keys = [problem.partition(":")[0] for problem in find_task_problems(config, 1024)]
    assert keys == ["schema", "description", "lengths", "lengths", "lengths", "choices"]
    settings = {"lengths": (4,), "depths": 2, "per_cell": 1, "choices": 3, "seed": 0}
    assert settings.keys() == set(NEEDLE_KEYS)
    problems = find_task_problems(TaskConfig(path="x", kind="continuation", **settings))  # type: ignore[arg-type]
    assert problems == [f"{key}: has no effect on a task of kind continuation; remove it" for key in NEEDLE_KEYS]


def test_lengths_without_room() -> None:
    with pytest.raises(DataError) as caught:
        load(lengths=(60, 100, 900))
    lines = str(caught.value).splitlines()
    assert lines[0] == "task needle: 2 problems:" and len(lines) == 3
    match = re.fullmatch(
        r"  task needle: 100 tokens are too few for a needle, its question and 11 depths; use at least (\d+)",
        lines[2],
    )
    assert match is not None
    least = int(match[1])
    assert 200 < least < 300
    with pytest.raises(DataError, match="task needle: 128 tokens are too few"):
        load(seq_length=128)


def test_short_dataset() -> None:
    task = load(lengths=(1000,), depths=2)
    needed = max(len(requests[0].context) for requests in group(task))
    with pytest.raises(
        DataError, match="packed/books: has 700 tokens, but the longest haystack of task needle needs 8"
    ):
        load(lengths=(1000,), depths=2, num_tokens=700)
    assert load(lengths=(1000,), depths=2, num_tokens=needed).num_items == 2


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("depths", 0, "depths: must be at least 1, got 0"),
        ("per_cell", 0, "per_cell: must be at least 1, got 0"),
        ("lengths", [512, 0], "lengths.1: must be at least 1, got 0"),
        ("lengths", 512, "lengths: expected a list, got 512"),
        ("seed", -1, "seed: must be at least 0, got -1"),
    ],
)
def test_bad_values_are_named_with_their_line(tmp_path: Path, key: str, value: Any, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "cpt:\n  seq_length: 8\n  global_batch_size: 8\n  validation:\n    tasks:\n      find:\n        kind: needle\n"
        f"        path: x\n        {key}: {value}\n",
        encoding="utf-8",
    )
    with pytest.raises(ConfigError, match=re.escape(f"run.yaml:9: cpt.validation.tasks.find.{message}")):
        load_config(path)


def test_facts_without_comparable_values() -> None:
    def encode_to_any_length(_: str, answer: str) -> list[int]:
        return [1] * (int(answer) % 10_000)

    def encode_without_digits(_: str, answer: str) -> list[int]:
        return [1] * len(answer)

    for encode_answer in (encode_to_any_length, encode_without_digits):
        with pytest.raises(ValueError, match=r"only 1 of 2000 values have \d+ tokens and differ; lower choices"):
            make_fact(random.Random(0), 2, encode_answer)
