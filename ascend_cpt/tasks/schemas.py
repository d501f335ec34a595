"""Turns records into questions with answers, as in lm-evaluation-harness 0.4.13.

Prompts and answers match the harness's tasks mmlu_*, ceval-valid_*, cmmlu_*, hellaswag, arc_* and lambada_openai.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ascend_cpt.errors import DataError
from ascend_cpt.tasks.records import Record

LETTERS = ("A", "B", "C", "D")
_MAX_DIGITS = 20  # Python refuses to convert thousands of digits


@dataclass(frozen=True, kw_only=True)
class Question:
    """A record in the form used by all kinds of tasks."""

    text: str
    """The prompt, without description and examples."""
    answers: tuple[str, ...]
    """The choices, or the continuation alone."""
    gold: int
    """Index of the right answer."""
    delimiter: str = " "
    """Text between prompt and answer when the answer is scored."""
    example_delimiter: str = " "
    """Text between prompt and answer in an example."""
    subject: str | None = None
    """Subject that selects the description and the examples."""


@dataclass(frozen=True, kw_only=True)
class Schema:
    """A layout of records."""

    key_sets: tuple[tuple[str, ...], ...]
    """The keys that a record must have; one of several sets."""
    parse: Callable[[Mapping[str, Any], list[str]], Question | None]
    """Makes a question, or adds problems. All keys of one set are present."""
    description: str = ""
    """Text before the first question; `{subject}` stands for the subject."""


def parse_record(schema: str, record: Record, problems: list[str]) -> Question | None:
    """Return a record's question, or None if problems, each with file and line, were added."""
    keys = find_keys(SCHEMAS[schema], record.data)
    found: list[str] = []
    question = None
    if missing := [key for key in keys if record.data.get(key) is None]:
        found.append(f"lacks {', '.join(missing)}; {describe_keys(schema)}")
    else:
        question = SCHEMAS[schema].parse(record.data, found)
    problems += [f"{record.where}: {problem}" for problem in found]
    return None if found else question


def find_keys(schema: Schema, data: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the schema's key set from which the record lacks the fewest keys."""
    return min(schema.key_sets, key=lambda keys: sum(data.get(key) is None for key in keys))


def detect_schema(record: Record) -> str:
    """Return the schema whose keys a record has.

    Raises:
        DataError: the keys fit no schema, or several schemas.
    """
    fitting = [
        name
        for name, schema in SCHEMAS.items()
        if any(all(record.data.get(key) is not None for key in keys) for keys in schema.key_sets)
    ]
    if len(fitting) == 1:
        return fitting[0]
    found = ", ".join(map(str, record.data)) or "none"
    if fitting:
        names = ", ".join(fitting)
        raise DataError(
            f"{record.where}: found keys {found}, which fit several schemas; set `schema` to one of {names}"
        )
    known = "; ".join(map(describe_keys, SCHEMAS))
    raise DataError(f"{record.where}: found keys {found}, which fit no schema; known: {known}")


def describe_keys(name: str) -> str:
    """Return `mmlu needs question, choices, answer`."""
    return f"{name} needs {' or '.join(', '.join(keys) for keys in SCHEMAS[name].key_sets)}"


def make_description(schema: str, question: Question, configured: str | None) -> str | None:
    """Return the text before the first question, or None if it needs a subject that the record lacks."""
    if configured is not None:
        return configured
    template = SCHEMAS[schema].description
    if "{subject}" not in template:
        return template
    return None if question.subject is None else template.format(subject=question.subject)


def _parse_mmlu(data: Mapping[str, Any], problems: list[str]) -> Question | None:
    choices = _read_texts(data, "choices", problems)
    if isinstance(data.get("choices"), list) and len(choices) != len(LETTERS):
        problems.append(f"choices: has {len(choices)} entries; mmlu has {len(LETTERS)}")
    return _make_letter_question(data, "question", choices, "answer", "Answer:", problems)


def _parse_ceval(data: Mapping[str, Any], problems: list[str]) -> Question | None:
    return _parse_chinese(data, "question", "answer", problems)


def _parse_cmmlu(data: Mapping[str, Any], problems: list[str]) -> Question | None:
    return _parse_chinese(data, "Question", "Answer", problems)


def _parse_chinese(data: Mapping[str, Any], question: str, answer: str, problems: list[str]) -> Question | None:
    choices = [_read_text(data, letter, problems) for letter in LETTERS]
    return _make_letter_question(data, question, choices, answer, "答案：", problems)


def _make_letter_question(
    data: Mapping[str, Any],
    question_key: str,
    choices: Sequence[str],
    answer_key: str,
    ending: str,
    problems: list[str],
) -> Question | None:
    """Return a question that lists its choices and is answered with a letter."""
    question = _read_text(data, question_key, problems)
    gold = _read_gold(data, answer_key, LETTERS, problems)
    if problems:
        return None
    lines = [
        question.strip(),
        *(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=True)),
        ending,
    ]
    subject = data.get("subject")
    name = str(subject).replace("_", " ") if subject else None
    return Question(text="\n".join(lines), answers=LETTERS, gold=gold, subject=name)


def _parse_hellaswag(data: Mapping[str, Any], problems: list[str]) -> Question | None:
    label, first = _read_text(data, "activity_label", problems), _read_text(data, "ctx_a", problems)
    second = _read_text(data, "ctx_b", problems, may_be_empty=True)
    endings = tuple(_clean_wikihow(ending) for ending in _read_choices(data, "endings", problems))
    if not all(endings):
        problems.append("endings: a choice is empty without the text in brackets")
    gold = _read_gold(data, "label", endings, problems, as_label=False)
    text = _clean_wikihow(f"{label}: {first} {second.capitalize()}")
    return None if problems else Question(text=text, answers=endings, gold=gold)


def _clean_wikihow(text: str) -> str:
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _parse_arc(data: Mapping[str, Any], problems: list[str]) -> Question | None:
    question = _read_text(data, "question", problems)
    choices = data["choices"]
    if not isinstance(choices, Mapping) or not {"text", "label"} <= choices.keys():
        problems.append("choices: must be {text: [...], label: [...]}")
        return None
    texts, labels = _read_choices(choices, "text", problems), _read_texts(choices, "label", problems)
    if texts and labels and len(texts) != len(labels):
        problems.append(f"choices: has {len(texts)} texts and {len(labels)} labels")
    gold = _read_gold(data, "answerKey", labels, problems, as_index=False)
    return None if problems else Question(text=f"Question: {question}\nAnswer:", answers=tuple(texts), gold=gold)


def _parse_lambada(data: Mapping[str, Any], problems: list[str]) -> Question | None:
    text = _read_text(data, "text", problems)
    context, _, word = text.rpartition(" ")
    if not problems and not word:
        problems.append("text: ends with a space; the last word is the answer")
    # The answer begins with a space, and lm-evaluation-harness puts another one before it in examples.
    return None if problems else Question(text=context, answers=(f" {word}",), gold=0, delimiter="")


def _parse_plain(data: Mapping[str, Any], problems: list[str]) -> Question | None:
    if all(data.get(key) is not None for key in ("query", "choices")):
        query = _read_text(data, "query", problems, may_be_empty=True)
        choices = _read_choices(data, "choices", problems)
        gold = _read_gold(data, "gold", choices, problems)
        return None if problems else Question(text=query, answers=tuple(choices), gold=gold)
    context = _read_text(data, "context", problems, may_be_empty=True)
    answers = (_read_text(data, "continuation", problems),)
    return None if problems else Question(text=context, answers=answers, gold=0, delimiter="", example_delimiter="")


def _read_text(data: Mapping[str, Any], key: str, problems: list[str], *, may_be_empty: bool = False) -> str:
    value = data[key]
    if not isinstance(value, str):
        problems.append(f"{key}: expected text, got {value!r}")
        return ""
    if not value.strip() and not may_be_empty:
        problems.append(f"{key}: is empty")
    return value


def _read_texts(data: Mapping[str, Any], key: str, problems: list[str]) -> list[str]:
    values = data[key]
    if not isinstance(values, list):
        problems.append(f"{key}: expected a list of texts, got {values!r}")
        return []
    return [_read_text({f"{key}[{k}]": value}, f"{key}[{k}]", problems) for k, value in enumerate(values)]


def _read_choices(data: Mapping[str, Any], key: str, problems: list[str]) -> list[str]:
    """Return a list of at least two texts."""
    choices = _read_texts(data, key, problems)
    if isinstance(data[key], list) and len(choices) < 2:
        problems.append(
            f"{key}: has {len(choices)} {'entry' if len(choices) == 1 else 'entries'}; at least 2 are needed"
        )
    return choices


def _read_gold(
    data: Mapping[str, Any],
    key: str,
    choices: Sequence[str],
    problems: list[str],
    *,
    as_index: bool = True,
    as_label: bool = True,
) -> int:
    """Return the index of the right choice, which is given as an index or as one of `choices`."""
    value = data[key]
    if as_label and isinstance(value, str) and value in choices:
        return list(choices).index(value)
    is_number = isinstance(value, str) and value.strip().isdecimal() and len(value) < _MAX_DIGITS
    number = int(value) if is_number else value
    if as_index and isinstance(number, int) and not isinstance(number, bool) and 0 <= number < len(choices):
        return number
    if choices:
        index, label = [f"0 to {len(choices) - 1}"] * as_index, [f"one of {', '.join(choices)}"] * as_label
        problems.append(f"{key}: {value!r} is not {' or '.join(index + label)}")
    return 0


SCHEMAS: dict[str, Schema] = {
    "mmlu": Schema(
        key_sets=(("question", "choices", "answer"),),
        parse=_parse_mmlu,
        description="The following are multiple choice questions (with answers) about {subject}.\n\n",
    ),
    "ceval": Schema(
        key_sets=(("question", *LETTERS, "answer"),),
        parse=_parse_ceval,
        description="以下是中国关于{subject}的单项选择题，请选出其中的正确答案。\n\n",
    ),
    "cmmlu": Schema(
        key_sets=(("Question", *LETTERS, "Answer"),),
        parse=_parse_cmmlu,
        description="以下是关于{subject}的单项选择题，请直接给出正确答案的选项。\n\n",
    ),
    "hellaswag": Schema(key_sets=(("activity_label", "ctx_a", "ctx_b", "endings", "label"),), parse=_parse_hellaswag),
    "arc": Schema(key_sets=(("question", "choices", "answerKey"),), parse=_parse_arc),
    "lambada": Schema(key_sets=(("text",),), parse=_parse_lambada),
    "plain": Schema(key_sets=(("query", "choices", "gold"), ("context", "continuation")), parse=_parse_plain),
}
