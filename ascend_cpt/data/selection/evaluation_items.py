"""Reads the texts of evaluation items: validation texts, and items of tasks in the layouts of `ascend_cpt/tasks`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ascend_cpt.data.packed.manifest import manifest_path
from ascend_cpt.data.readers.formats import ReadOptions
from ascend_cpt.data.readers.handlers import GeneralPretrainHandler
from ascend_cpt.data.readers.input_files import InputFile, find_input_files
from ascend_cpt.data.readers.records import read_records
from ascend_cpt.data.readers.spans import Span
from ascend_cpt.errors import DataError

LINES_FORMAT = "txt"
"""Format whose lines form one text, so that n-grams may extend over several lines."""

_QUERY_KEYS = (
    ("question",),
    ("Question",),
    ("query",),
    ("context",),
    ("ctx_a", "ctx_b"),
    ("ctx",),
    ("prompt",),
    ("text",),
)
"""Keys of the question or text of an item; the first ones that an item has are joined."""
_CHOICE_KEYS = ("choices", "endings")
_LETTERS = ("A", "B", "C", "D")
_ANSWER_KEYS = ("continuation", "answer", "Answer", "completion", "response", "target")
"""Keys of the answer of an item without choices."""
_MAX_RECORD_BYTES = 1 << 30


class Item(NamedTuple):
    """An evaluation item."""

    where: str
    """File and line."""
    texts: tuple[str, ...]
    """A validation text, or the question with each of the answers."""


def find_evaluation_files(paths: Sequence[str]) -> list[InputFile]:
    """Return the files with evaluation items.

    Raises:
        DataError: a path has no files that can be read.
    """
    files: list[InputFile] = []
    for path in paths:
        if manifest_path(path).is_file():
            raise DataError(f"--decontaminate {path}: is a packed dataset; give the text from which it was packed")
        try:
            files += find_input_files([path])
        except DataError as error:
            reason, _, advice = str(error).removeprefix("--input ").partition("; ")
            hint = "; name the files" if "--format" in advice else ""
            raise DataError(f"--decontaminate: {reason}{hint}") from error
    for file in files:
        if file.format == "indexed":
            raise DataError(f"--decontaminate {file.path}: is tokenized; give the text from which it was made")
    return files


def read_items(file: InputFile, key: str) -> Iterator[Item]:
    """Yield the items of a file; in a text file, each line is one.

    Args:
        file: The file.
        key: Key of the text of validation texts.

    Raises:
        DataError: a record cannot be read or has neither the key nor those of a task.
    """
    options = ReadOptions(columns=None, txt_documents="line", max_record_bytes=_MAX_RECORD_BYTES)
    span = Span(file=file, start=0, stop=sys.maxsize, weight=1)
    for record in read_records(span, options, GeneralPretrainHandler()):
        where = f"{file.path}:{record.line if record.line is not None else record.position}"
        if record.row is None:
            raise DataError(f"--decontaminate: {where}: {record.problem}; correct or remove the record")
        texts = _find_texts(record.row, key if file.format != LINES_FORMAT else "text")
        if not texts:
            keys = ", ".join(map(str, record.row)) or "none"
            raise DataError(
                f"--decontaminate: {where}: found keys {keys}, but no text; expected {key!r} or a question "
                "(question, query, context, ...) as in docs/evaluation.md"
            )
        yield Item(where, texts)


def _find_texts(row: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Return the texts of an item, or nothing if it has none."""
    answers = _find_answers(row)
    if isinstance(row.get(key), str) and not answers:
        return (row[key],)
    for keys in _QUERY_KEYS:
        parts = [row[name] for name in keys if isinstance(row.get(name), str)]
        if parts:
            query = " ".join(parts)
            return tuple(f"{query} {answer}" for answer in answers) or (query,)
    return ()


def _find_answers(row: Mapping[str, Any]) -> list[str]:
    for key in _CHOICE_KEYS:
        choices = row.get(key)
        if isinstance(choices, Mapping):  # ARC
            choices = choices.get("text")
        if isinstance(choices, Sequence) and not isinstance(choices, str):
            return [choice for choice in choices if isinstance(choice, str)]
    if all(isinstance(row.get(letter), str) for letter in _LETTERS):
        return [row[letter] for letter in _LETTERS]
    return [row[key] for key in _ANSWER_KEYS if isinstance(row.get(key), str)]
