"""Builds a task's prompts, each with a description, solved examples and a question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ascend_cpt.config.task_schema import TaskConfig
from ascend_cpt.config.values import format_number
from ascend_cpt.tasks.records import choose_items, raise_problems, read_records
from ascend_cpt.tasks.schemas import Question, detect_schema, make_description, parse_record

SEPARATOR = "\n\n"
"""Text after an example."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """The prompt of an item."""

    where: str
    """File and line of the item."""
    text: str
    question: Question


@dataclass(frozen=True, kw_only=True)
class _Item:
    where: str
    data: dict[str, Any]
    question: Question


def load_prompts(config: TaskConfig) -> list[Prompt]:
    """Read all items and examples, and return the prompts of the chosen items.

    Raises:
        DataError: files or items are missing or invalid. All problems in a file are listed.
    """
    schema, items = _read_items(config.path, config.schema)
    if config.kind == "multiple_choice":
        raise_problems(
            config.path,
            [
                f"{item.where}: has no choices; kind multiple_choice needs query, choices and gold"
                for item in items
                if len(item.question.answers) < 2
            ],
        )
    examples: list[_Item] = []
    if config.few_shot and config.few_shot_path is not None:
        examples = _read_items(config.few_shot_path, schema)[1]
    problems: dict[str, None] = {}  # without repetitions, in order
    prompts = []
    for item in choose_items(items, config.max_items):
        description = make_description(schema, item.question, config.description)
        if description is None:
            problems[
                f"{item.where}: lacks `subject`, which the prompt of {schema} names; add it, or set description"
            ] = None
            continue
        # An item that is also an example must not have its own answer in its prompt.
        subject = item.question.subject
        pool = [each for each in examples if each.question.subject == subject and each.data != item.data]
        if len(pool) < config.few_shot:
            which = f" of subject {subject!r}" if subject else ""
            examples_text = format_number(len(pool), "example")
            problem = f"{config.few_shot_path}: has {examples_text}{which}; few_shot is {config.few_shot}; lower it"
            problems[problem] = None
            continue
        text = description + _join_examples(pool[: config.few_shot]) + item.question.text
        prompts.append(Prompt(where=item.where, text=text, question=item.question))
    raise_problems(config.path, list(problems))
    return prompts


def _read_items(path: str, schema: str | None) -> tuple[str, list[_Item]]:
    """Return the schema and the items in a file or folder."""
    records = read_records(path)
    schema = schema or detect_schema(records[0])
    problems: list[str] = []
    items = []
    for record in records:
        question = parse_record(schema, record, problems)
        if question is not None:
            items.append(_Item(where=record.where, data=record.data, question=question))
    raise_problems(path, problems)
    return schema, items


def _join_examples(examples: Sequence[_Item]) -> str:
    questions = [example.question for example in examples]
    return "".join(
        question.text + question.example_delimiter + question.answers[question.gold] + SEPARATOR
        for question in questions
    )
