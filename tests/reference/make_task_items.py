"""Makes the small item files and the tokenizer of tests/reference/tasks. Called by make_task_reference.py.

The texts are sentences of a few words, so that a byte-level BPE with at most 127 entries covers them, also in Chinese.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

# 127 is the padding token of the models, see make_reference.py.
MAX_VOCABULARY = 127
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>")
BOS_ID = 1

NOUNS = ["set", "ring", "field", "group", "line", "point", "number", "order", "base", "unit", "root", "sum"]
ADJECTIVES = ["red", "blue", "small", "large", "open", "closed", "first", "last", "real", "even"]
VERBS = ["has", "is", "makes", "needs", "gives", "takes"]
CHINESE = ["中国", "农学", "注册", "会计师", "正确", "答案", "单项", "选择", "关于", "直接", "给出", "题", "选项", "的"]

Rows = list[dict[str, Any]]


def make_items() -> dict[str, Rows]:
    """Return the rows of each file by name."""
    source = random.Random(20)
    return {
        "mmlu.jsonl": [_make_mmlu(source) for _ in range(8)],
        "mmlu_dev.jsonl": [_make_mmlu(source) for _ in range(3)],
        "ceval.jsonl": [_make_chinese(source, "question", "answer", "注册会计师") for _ in range(8)],
        "ceval_dev.jsonl": [_make_chinese(source, "question", "answer", "注册会计师") for _ in range(2)],
        "cmmlu.jsonl": [_make_chinese(source, "Question", "Answer", None) for _ in range(8)],
        "hellaswag.jsonl": [_make_hellaswag(source) for _ in range(12)],
        "arc.jsonl": [_make_arc(source) for _ in range(12)],
        "lambada_dev.jsonl": [{"text": _make_sentence(source, 5)} for _ in range(2)],
        "plain_choices.jsonl": [_make_plain_choices(source, k) for k in range(8)],
        "plain_answers.jsonl": [_make_plain_answer(source, k) for k in range(8)],
    }


def make_contexts(num_contexts: int) -> list[str]:
    """Return sentences without their last word, for LAMBADA."""
    source = random.Random(21)
    return [_make_sentence(source, 6) for _ in range(num_contexts)]


def train_tokenizer(texts: list[str]) -> tokenizers.Tokenizer:
    """Return a byte-level BPE whose vocabulary has only the bytes and pairs of `texts`."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCABULARY, special_tokens=list(SPECIAL_TOKENS), initial_alphabet=[], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text, f"not covered: {text!r}"
    return tokenizer


def write_rows(path: Path, rows: Rows) -> None:
    """Write a jsonl file."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _make_sentence(source: random.Random, num_words: int) -> str:
    words = [source.choice((ADJECTIVES, NOUNS, VERBS)[k % 3]) for k in range(num_words)]
    return "the " + " ".join(words)


def _make_mmlu(source: random.Random) -> dict[str, Any]:
    return {
        "question": f" {_make_sentence(source, 4)}? ",  # lm-eval strips the spaces
        "subject": "abstract_algebra",
        "choices": [_make_sentence(source, 2) for _ in range(4)],
        "answer": source.randrange(4),
    }


def _make_chinese(source: random.Random, question: str, answer: str, subject: str | None) -> dict[str, Any]:
    def phrase(length: int) -> str:
        return "".join(source.choice(CHINESE) for _ in range(length))

    row: dict[str, Any] = {question: phrase(4), **{letter: phrase(2) for letter in "ABCD"}}
    row[answer] = source.choice("ABCD")
    return row if subject is None else {**row, "subject": subject}


def _make_hellaswag(source: random.Random) -> dict[str, Any]:
    endings = [_make_sentence(source, source.randrange(2, 6)) for _ in range(4)]
    if source.random() < 0.5:
        endings[0] = f"{endings[0]} [title] the end [step] it {endings[0]}"
    return {
        "activity_label": source.choice(NOUNS),
        "ctx_a": f"[header] {_make_sentence(source, 3)} [title] {_make_sentence(source, 2)}.",
        "ctx_b": source.choice(("", "the set", "a red line")),
        "endings": endings,
        "label": str(source.randrange(4)),
    }


def _make_arc(source: random.Random) -> dict[str, Any]:
    labels = "ABCDE"[: source.randrange(3, 6)] if source.random() < 0.7 else "1234"
    return {
        "question": _make_sentence(source, 4),
        "choices": {"text": [_make_sentence(source, source.randrange(1, 5)) for _ in labels], "label": list(labels)},
        "answerKey": source.choice(labels),
    }


def _make_plain_choices(source: random.Random, number: int) -> dict[str, Any]:
    query = "" if number % 4 == 3 else _make_sentence(source, 3)
    choices = [_make_sentence(source, source.randrange(1, 5)) for _ in range(2 + number % 3)]
    return {"query": query, "choices": choices, "gold": source.randrange(len(choices))}


def _make_plain_answer(source: random.Random, number: int) -> dict[str, Any]:
    """Return a row whose context ends with a space, whose continuation begins with one, or whose context is empty."""
    context, continuation = _make_sentence(source, 4), _make_sentence(source, source.randrange(1, 6))
    if number % 4 == 0:
        return {"context": f"{context} ", "continuation": continuation}
    if number % 4 == 1:
        return {"context": "", "continuation": continuation}
    return {"context": context, "continuation": f" {continuation}"}
