"""Items are read, chosen and encoded as documented; every bad input is one clear error."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ascend_cpt.config.task_schema import TaskConfig
from ascend_cpt.errors import ConfigError, DataError
from ascend_cpt.tasks.load import Task, load_task
from ascend_cpt.tasks.prompts import load_prompts
from ascend_cpt.tasks.records import choose_items

PLAIN = {"query": "two and two", "choices": ["four", "five"], "gold": 0}
MMLU = {"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 1, "subject": "high_school_physics"}
CEVAL = {"question": "哪个？", "A": "甲", "B": "乙", "C": "丙", "D": "丁", "answer": "C"}
ARC = {"question": "Which?", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"}
HELLASWAG = {"activity_label": "Run", "ctx_a": "A man", "ctx_b": "he", "endings": ["runs", "sits"], "label": "1"}
PREFIX = 300


def write(path: Path, rows: Sequence[Mapping[str, Any] | str]) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def encode(text: str) -> list[int]:
    """A tokenizer of bytes."""
    return list(text.encode("utf-8"))


def load(path: str, *, seq_length: int = 1000, prefix_token: int | None = PREFIX, **fields: Any) -> Task:
    config = TaskConfig(**{"path": path, "kind": "multiple_choice", **fields})
    return load_task("demo", config, encode, seq_length=seq_length, prefix_token=prefix_token)


def fail(path: str, **fields: Any) -> str:
    with pytest.raises((DataError, ConfigError)) as caught:
        load(path, **fields)
    return str(caught.value)


def decode(ids: Sequence[int]) -> str:
    return bytes(ids).decode("utf-8")


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".parquet", ""])
def test_formats_give_the_same_requests(tmp_path: Path, ending: str) -> None:
    rows = [{**PLAIN, "query": f"question {k}"} for k in range(3)]
    expected = load(write(tmp_path / "expected.jsonl", rows))
    path = tmp_path / f"items{ending}"
    if ending == ".jsonl":
        write(path, [rows[0], "", *rows[1:]])  # blank lines are skipped
    elif ending == ".jsonl.gz":
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    elif ending == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.mkdir()
        write(path / "b.jsonl", rows[1:])
        write(path / "a.jsonl", rows[:1])
        write(path / "readme.txt", ["no items"])
    task = load(str(path))
    assert task.requests == expected.requests
    numbers = {".jsonl": [1, 3, 4], "": [1, 1, 2]}.get(ending, [1, 2, 3])
    assert [int(where.rpartition(":")[2]) for where in task.items] == numbers


def test_columns_of_other_rows_are_null_in_parquet(tmp_path: Path) -> None:
    rows = [PLAIN | {"context": None, "continuation": None}]
    rows += [dict.fromkeys(PLAIN) | {"context": "one", "continuation": " two"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "items.parquet")
    task = load(f"{tmp_path}/items.parquet", kind="answer_bits")
    assert [decode(request.continuation) for request in task.requests] == [" four", " two"]


def test_request(tmp_path: Path) -> None:
    task = load(write(tmp_path / "items.jsonl", [{"query": "Größe", "choices": ["ä", "bcd"], "gold": 1}]))
    first, second = task.requests
    assert (decode(first.context), decode(first.continuation)) == ("Größe", " ä")
    assert (first.num_bytes, first.num_chars, second.num_bytes) == (2, 1, 3)
    assert (task.kind, task.metric, task.num_items, task.gold) == ("multiple_choice", "acc", 1, (1,))


@pytest.mark.parametrize("subject", ["high_school_physics", "农学"])
def test_description_has_the_subject(tmp_path: Path, subject: str) -> None:
    for row, schema in ((MMLU, "mmlu"), ({**CEVAL, "subject": subject}, "ceval")):
        (prompt,) = load_prompts(
            TaskConfig(path=write(tmp_path / f"{schema}.jsonl", [row | {"subject": subject}]), kind="multiple_choice")
        )
        assert prompt.text.splitlines()[0].count(subject.replace("_", " ")) == 1


def test_configured_description(tmp_path: Path) -> None:
    path = write(tmp_path / "items.jsonl", [CEVAL])
    for description in ("", "Choose.\n"):
        (prompt,) = load_prompts(TaskConfig(path=path, kind="multiple_choice", description=description))
        assert prompt.text == f"{description}哪个？\nA. 甲\nB. 乙\nC. 丙\nD. 丁\n答案："


def test_examples_are_the_first_of_the_subject_and_never_the_item_itself(tmp_path: Path) -> None:
    rows = [{**MMLU, "question": f"{k}?", "subject": "ab"[k % 2]} for k in range(6)]
    path = write(tmp_path / "items.jsonl", rows)
    config = TaskConfig(path=path, kind="multiple_choice", few_shot=2, few_shot_path=path)
    questions = [
        [line[0] for line in prompt.text.splitlines() if line.endswith("?")] for prompt in load_prompts(config)
    ]
    assert questions == [
        ["2", "4", "0"],
        ["3", "5", "1"],
        ["0", "4", "2"],
        ["1", "5", "3"],
        ["0", "2", "4"],
        ["1", "3", "5"],
    ]


def test_examples_of_continuations_have_their_own_spaces(tmp_path: Path) -> None:
    path = write(tmp_path / "items.jsonl", [{"context": "a", "continuation": end} for end in (" b", "c")])
    config = TaskConfig(path=path, kind="continuation", few_shot=1, few_shot_path=path)
    assert [prompt.text for prompt in load_prompts(config)] == ["ac\n\na", "a b\n\na"]


def test_empty_prompt_is_the_prefix_token(tmp_path: Path) -> None:
    path = write(tmp_path / "items.jsonl", [{"context": "", "continuation": "word"}])
    (request,) = load(path, kind="continuation").requests
    assert (request.context, decode(request.continuation)) == ((PREFIX,), "word")
    assert "has no BOS or EOS token" in fail(path, kind="continuation", prefix_token=None)


def test_chosen_items_are_spread_and_fixed() -> None:
    chosen = choose_items(range(1000), 10)
    assert [item // 100 for item in chosen] == list(range(10))
    assert len({item % 100 for item in chosen}) > 5, "not at random"
    assert chosen == choose_items(range(1000), 10) == [84, 175, 242, 325, 451, 540, 678, 730, 847, 958]
    assert choose_items(range(7), 5) == sorted(set(choose_items(range(7), 5)))
    assert choose_items("abc", 3) == choose_items("abc", 9) == choose_items("abc", None) == ["a", "b", "c"]


def test_max_items(tmp_path: Path) -> None:
    path = write(tmp_path / "items.jsonl", [{**PLAIN, "query": str(k)} for k in range(20)])
    task = load(path, max_items=4)
    assert task.num_items == 4 and len(task.requests) == 8
    assert task.requests[-1].item == 3


def test_long_items_are_left_out_and_named(tmp_path: Path) -> None:
    rows = [{"query": "q" * length, "choices": ["a", "bb"], "gold": 0} for length in (3, 9, 4)]
    path = write(tmp_path / "items.jsonl", rows)
    # The input of the longest request of the last row: 4 bytes, a space and the first byte of the answer.
    task = load(path, seq_length=6)
    assert task.too_long == (f"{path}:2",)
    assert task.items == (f"{path}:1", f"{path}:3")
    assert [request.item for request in task.requests] == [0, 0, 1, 1]
    assert len(load(path, seq_length=5).too_long) == 2
    assert "no item fits into rows of 4 tokens (the shortest needs 5)" in fail(path, seq_length=4)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"query": ', "items.jsonl:2: malformed JSON: Expecting value"),
        ("[1]", "items.jsonl:2: is not a JSON object"),
        ({"query": "x", "gold": 1}, "items.jsonl:2: lacks choices; plain needs query, choices, gold or context"),
        ({**PLAIN, "gold": None}, "items.jsonl:2: lacks gold"),
        ({**PLAIN, "query": 3}, "items.jsonl:2: query: expected text, got 3"),
        ({**PLAIN, "choices": ["four"]}, "items.jsonl:2: choices: has 1 entry; at least 2 are needed"),
        ({**PLAIN, "choices": "four"}, "items.jsonl:2: choices: expected a list of texts, got 'four'"),
        ({**PLAIN, "choices": ["four", " "]}, "items.jsonl:2: choices[1]: is empty"),
        ({**PLAIN, "gold": 2}, "items.jsonl:2: gold: 2 is not 0 to 1 or one of four, five"),
        ({**PLAIN, "gold": -1}, "items.jsonl:2: gold: -1 is not"),
        ({**PLAIN, "gold": True}, "items.jsonl:2: gold: True is not"),
        ({**PLAIN, "gold": "six"}, "items.jsonl:2: gold: 'six' is not"),
        ({"context": "a", "continuation": "b"}, "items.jsonl:2: has no choices; kind multiple_choice needs query"),
    ],
)
def test_bad_plain_row(tmp_path: Path, row: Mapping[str, Any] | str, message: str) -> None:
    assert message in fail(write(tmp_path / "items.jsonl", [PLAIN, row]))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**MMLU, "choices": ["a", "b", "c"]}, "choices: has 3 entries; mmlu has 4"),
        ({**MMLU, "answer": "E"}, "answer: 'E' is not 0 to 3 or one of A, B, C, D"),
        ({**MMLU, "answer": 4}, "answer: 4 is not"),
        ({**MMLU, "question": " "}, "question: is empty"),
        ({**MMLU, "subject": None}, "lacks `subject`, which the prompt of mmlu names; add it, or set description"),
        (CEVAL, "lacks `subject`, which the prompt of ceval names"),
        ({**CEVAL, "C": "", "answer": "X"}, "C: is empty"),
        ({**ARC, "answerKey": "C"}, "answerKey: 'C' is not one of A, B"),
        (
            {**ARC, "choices": ["x", "y"], "answer": 0},
            "found keys question, choices, answerKey, answer, which fit several schemas; set `schema` to one of mmlu",
        ),
        ({**ARC, "choices": {"text": ["x", "y"]}}, "choices: must be {text: [...], label: [...]}"),
        ({**ARC, "choices": {"text": ["x", "y"], "label": ["A"]}}, "choices: has 2 texts and 1 labels"),
        ({**HELLASWAG, "label": ""}, "label: '' is not 0 to 1"),
        ({**HELLASWAG, "endings": ["[step]", "sits"]}, "endings: a choice is empty without the text in brackets"),
        ({"text": "one "}, "text: ends with a space; the last word is the answer"),
        ({"prompt": "x", "answer": 1}, "found keys prompt, answer, which fit no schema; known: mmlu needs question"),
    ],
)
def test_bad_row_of_a_benchmark(tmp_path: Path, row: Mapping[str, Any], message: str) -> None:
    kind = "continuation" if "text" in row else "multiple_choice"
    assert f"items.jsonl:1: {message}" in fail(write(tmp_path / "items.jsonl", [row]), kind=kind)


def test_every_problem_is_listed(tmp_path: Path) -> None:
    path = write(tmp_path / "items.jsonl", [{**PLAIN, "gold": 5}, {"query": 1, "choices": [], "gold": 0}] * 15)
    message = fail(path)
    assert message.startswith(f"{path}: 45 problems:\n  {path}:1: gold: 5 is not")
    assert f"  {path}:2: query: expected text, got 1\n  {path}:2: choices: has 0 entries" in message
    assert message.endswith("and 25 more")


def test_bad_files(tmp_path: Path) -> None:
    assert f"{tmp_path}/none.jsonl: no such file or folder" in fail(f"{tmp_path}/none.jsonl")
    assert "contains no files to read (extensions: .jsonl .jsonl.gz .parquet)" in fail(str(tmp_path))
    assert "empty.jsonl: has no items" in fail(write(tmp_path / "empty.jsonl", [""]))
    assert "items.csv: unknown file extension" in fail(write(tmp_path / "items.csv", ["a"]))
    assert "items.jsonl.gz: cannot be read" in fail(write(tmp_path / "items.jsonl.gz", ["{}"]))
    assert "items.parquet: cannot be read" in fail(write(tmp_path / "items.parquet", ["{}"]))
    (tmp_path / "latin.jsonl").write_bytes('{"text": "ä"}'.encode("latin-1"))
    assert "latin.jsonl:1: is not UTF-8" in fail(f"{tmp_path}/latin.jsonl")


def test_few_examples(tmp_path: Path) -> None:
    path = write(tmp_path / "items.jsonl", [MMLU, {**MMLU, "question": "What?"}, {**MMLU, "subject": "law"}])
    dev = write(tmp_path / "dev.jsonl", [{**MMLU, "question": "Who?"}, {**PLAIN}])
    assert "dev.jsonl:2: lacks question, answer; mmlu needs" in fail(path, few_shot=2, few_shot_path=dev)
    dev = write(tmp_path / "dev.jsonl", [{**MMLU, "question": "Who?"}])
    message = fail(path, few_shot=2, few_shot_path=dev)
    assert "2 problems" in message, "one for each subject"
    assert f"{dev}: has 1 example of subject 'high school physics'; few_shot is 2" in message
    assert f"{dev}: has 0 examples of subject 'law'; few_shot is 2" in message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"kind": "multiple-choice"},
            "kind: 'multiple-choice' is unknown; did you mean 'multiple_choice'?; choose from",
        ),
        ({"schema": "mlu"}, "schema: 'mlu' is unknown; did you mean 'mmlu'?"),
        ({"metric": "accuracy"}, "metric: 'accuracy' is unknown; choose from acc, acc_norm, bits_per_byte, exact"),
        ({"metric": "exact"}, "metric: multiple_choice has no exact; choose from acc, acc_norm, bits_per_byte"),
        ({"kind": "answer_bits", "metric": "acc"}, "metric: answer_bits has no acc; choose from bits_per_byte"),
        ({"few_shot": 5}, "few_shot: 5 examples need few_shot_path; set it, or set few_shot to 0"),
        ({"schema": "lambada"}, "kind: lambada has no choices; use continuation or answer_bits"),
    ],
)
def test_bad_configuration(tmp_path: Path, fields: Mapping[str, Any], message: str) -> None:
    text = fail(write(tmp_path / "items.jsonl", [PLAIN]), **fields)
    assert f"task demo: {message}" in text


def test_every_problem_of_a_configuration_is_listed() -> None:
    text = fail("none.jsonl", kind="x", schema="y", metric="z", few_shot=1)
    assert [key for key in ("kind", "schema", "metric", "few_shot") if f"task demo: {key}: " in text] == [
        "kind",
        "schema",
        "metric",
        "few_shot",
    ]
