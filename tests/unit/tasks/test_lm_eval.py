"""Prompts, token ids and scores are those of lm-evaluation-harness (tests/reference/make_task_reference.py)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from ascend_cpt.config.task_schema import TaskConfig
from ascend_cpt.tasks.load import Task, load_task
from ascend_cpt.tasks.prompts import load_prompts
from ascend_cpt.tasks.score import score_task

FOLDER = Path(__file__).resolve().parents[2] / "reference" / "tasks"
REFERENCE = json.loads((FOLDER / "lm_eval.json").read_text(encoding="utf-8"))
TOKENIZER = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
TASKS = sorted(REFERENCE["tasks"])
MODELS = sorted(REFERENCE["models"])


def make_config(name: str) -> TaskConfig:
    fields = REFERENCE["tasks"][name]["config"]
    paths = {key: str(FOLDER / value) for key, value in fields.items() if key.endswith("path")}
    return TaskConfig(**{**fields, **paths})


def encode(text: str) -> list[int]:
    ids: list[int] = TOKENIZER.encode(text).ids
    return ids


def load(name: str, model: str) -> Task:
    settings = REFERENCE["models"][model]
    return load_task(
        name,
        make_config(name),
        encode,
        seq_length=REFERENCE["seq_length"],
        prefix_token=settings["prefix_token"],
        add_prefix=settings["adds_bos"],
    )


def read_results(name: str, model: str) -> tuple[dict[str, Any], Any, Any]:
    results = REFERENCE["tasks"][name]["results"][model]
    return results, np.array(results["log_likelihoods"]), np.array(results["greedy"])


@pytest.mark.parametrize("name", TASKS)
def test_prompts(name: str) -> None:
    prompts = load_prompts(make_config(name))
    ours = [
        [prompt.text, [prompt.question.delimiter + answer for answer in prompt.question.answers]] for prompt in prompts
    ]
    assert ours == REFERENCE["tasks"][name]["prompts"]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", TASKS)
def test_token_ids(name: str, model: str) -> None:
    task = load(name, model)
    assert not task.too_long and task.num_items == len(task.items) == len(task.gold)
    expected = [
        (item, choice, tuple(context), tuple(continuation))
        for item, (context, continuations) in enumerate(read_results(name, model)[0]["tokens"])
        for choice, continuation in enumerate(continuations)
    ]
    assert [(each.item, each.choice, each.context, each.continuation) for each in task.requests] == expected


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", TASKS)
def test_scores(name: str, model: str) -> None:
    results, log_likelihoods, greedy = read_results(name, model)
    score = score_task(load(name, model), log_likelihoods, greedy)
    names, theirs = REFERENCE["tasks"][name]["metrics"], results["scores"]
    assert names
    assert {ours: score.metrics[ours] for ours in names} == {ours: theirs[name] for ours, name in names.items()}
    errors = {ours: theirs.get(f"{name}_stderr") for ours, name in names.items()}
    assert {ours: score.standard_errors[ours] for ours in names} == errors


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", ["hellaswag", "plain_choices"])
def test_bits_of_the_right_choice(name: str, model: str) -> None:
    """As kind answer_bits, a task with choices has one request for each item: the right choice."""
    _, log_likelihoods, greedy = read_results(name, model)
    choices, config = load(name, model), replace(make_config(name), kind="answer_bits", metric=None)
    settings = REFERENCE["models"][model]
    bits = load_task(
        name, config, encode, seq_length=512, prefix_token=settings["prefix_token"], add_prefix=settings["adds_bos"]
    )
    right = [k for k, each in enumerate(choices.requests) if each.choice == choices.gold[each.item]]
    assert [each.continuation for each in bits.requests] == [choices.requests[k].continuation for k in right]
    score = score_task(bits, log_likelihoods[right], greedy[right])
    assert score.score == score_task(choices, log_likelihoods, greedy).metrics["bits_per_byte"]
    assert not score.higher_is_better


def test_the_reference_distinguishes_the_metrics() -> None:
    """Scores that are all 0, or acc and acc_norm that are always equal, would test little."""
    scores = {name: read_results(name, "qwen3")[0]["scores"] for name in TASKS}
    assert scores["hellaswag"]["acc"] != scores["hellaswag"]["acc_norm"]
    assert 0 < scores["lambada"]["acc"] < 1
