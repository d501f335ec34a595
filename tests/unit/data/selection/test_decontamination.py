"""Overlaps with evaluation items: those of datatrove, and planted ones in all layouts of items."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ascend_cpt.data.selection import decontamination
from ascend_cpt.data.selection.decontamination import Decontamination, Overlap, build_index, load_overlaps, match_shard
from ascend_cpt.data.selection.evaluation_items import find_evaluation_files, read_items
from ascend_cpt.data.shards.documents import with_dropped
from ascend_cpt.errors import DataError
from ascend_cpt.tasks.records import Record
from ascend_cpt.tasks.schemas import SCHEMAS, parse_record
from tests.selection import make_tasks

REFERENCE = json.loads((Path(__file__).parents[3] / "reference/minhash/reference.json").read_text(encoding="utf-8"))
WORDS = ("one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen").split()  # noqa: SIM905


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def find(folder: Path, texts: list[str], *paths: str, n: int = 13, num_shards: int = 1) -> list[Overlap]:
    selection = folder / "selection"
    selection.mkdir()
    tasks = make_tasks(folder, [{"text": text} for text in texts], num_shards)
    tasks = with_dropped(tasks, selection, (decontamination.KIND,))
    files = tuple(find_evaluation_files(paths))
    build_index(Decontamination(files=files, key="text", n=n, action="drop"), selection, None)
    for task in tasks:
        match_shard(task, lambda progress: None, n=n, library=None)
    return load_overlaps(tasks)


@pytest.mark.parametrize("num_shards", [1, 4])
def test_overlaps_are_those_of_datatrove(tmp_path: Path, num_shards: int) -> None:
    items = write(tmp_path / "items.jsonl", [{"text": item} for item in REFERENCE["items"]])
    texts = [text or " " for text in REFERENCE["texts"]]
    ends = [len(json.dumps({"text": text})) + 1 for text in texts]
    overlaps = find(tmp_path, texts, items, num_shards=num_shards)
    places = {sum(ends[:number]): number for number in range(len(texts))}
    assert [places[overlap.place.position] for overlap in overlaps] == REFERENCE["contaminated"]


def test_planted(tmp_path: Path) -> None:
    valid = write(tmp_path / "valid.jsonl", [{"text": "nothing"}, {"text": " ".join(WORDS[:13])}])
    run = " ".join(WORDS[:13])
    texts = [
        f"begin {run} end",
        " ".join(WORDS[:12]),
        " ".join([*WORDS[:6], "changed", *WORDS[7:13]]),
        f"“{run.upper().replace(' ', ', ')}!”",
        "\n".join(WORDS),
    ]
    found = find(tmp_path, texts, valid)
    assert [(one.place.line, one.item, one.ngram, one.num_ngrams) for one in found] == [
        (line, f"{valid}:2", run, 1) for line in (1, 4, 5)
    ]


def test_an_item_shorter_than_an_ngram_is_reported(tmp_path: Path) -> None:
    valid = write(tmp_path / "valid.jsonl", [{"text": "too short"}, {"text": " ".join(WORDS[:14])}])
    settings = Decontamination(files=tuple(find_evaluation_files([valid])), key="text", n=13, action="drop")
    described = build_index(settings, tmp_path, None)
    assert described == "2 13-grams of 2 items; 1 items have fewer than 13 words and cannot be found"
    with pytest.raises(DataError, match="no item has 20 words; use a lower --decontaminate-ngram"):
        find(tmp_path, ["x"], valid, n=20)


def test_lines_of_a_text_file_form_one_text(tmp_path: Path) -> None:
    (tmp_path / "valid.txt").write_text("first line\n\n" + " ".join(WORDS[:7]) + "\n" + " ".join(WORDS[7:]) + "\nend\n")
    (overlap,) = find(tmp_path, [" ".join(WORDS[2:15])], str(tmp_path / "valid.txt"))
    assert overlap.item == f"{tmp_path}/valid.txt:3"


def test_chinese_characters_count_half(tmp_path: Path) -> None:
    text = "下列关于我国古代科学技术成就的说法中正确的一项是甲骨文记录了日食"
    valid = write(tmp_path / "valid.jsonl", [{"text": text}])
    found = find(tmp_path, [f"题：{text[2:28]}。", text[2:27], f"{text[:13]}，{text[13:26]}"], valid)
    assert [overlap.place.line for overlap in found] == [1, 3]


LETTERED = {"A": "alpha", "B": "beta", "C": "gamma", "D": "delta"}
QUESTION = " ".join(WORDS[:12])
ROWS: dict[str, dict[str, Any]] = {
    "mmlu": {"question": QUESTION, "choices": list(LETTERED.values()), "answer": 1},
    "ceval": {"question": QUESTION, **LETTERED, "answer": "B"},
    "cmmlu": {"Question": QUESTION, **LETTERED, "Answer": "B"},
    "hellaswag": {
        "activity_label": "Counting",
        "ctx_a": " ".join(WORDS[:6]),
        "ctx_b": " ".join(WORDS[6:12]),
        "endings": list(LETTERED.values()),
        "label": 1,
    },
    "arc": {
        "question": QUESTION,
        "choices": {"text": list(LETTERED.values()), "label": list("ABCD")},
        "answerKey": "B",
    },
    "lambada": {"text": f"{QUESTION} beta"},
    "plain": {"query": QUESTION, "choices": list(LETTERED.values()), "gold": 1},
}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_items_of_tasks(tmp_path: Path, schema: str) -> None:
    """The question has 12 words, so that only question and answer together have 13."""
    problems: list[str] = []
    assert parse_record(schema, Record(where="here", data=ROWS[schema]), problems) is not None and not problems
    items = write(tmp_path / "task.jsonl", [ROWS[schema]])
    overlaps = find(tmp_path, [f"{QUESTION} beta", f"{QUESTION} epsilon", QUESTION], items)
    assert [overlap.place.line for overlap in overlaps] == [1]


def test_continuations(tmp_path: Path) -> None:
    items = write(tmp_path / "task.jsonl", [{"context": QUESTION, "continuation": " thirteen"}])
    assert len(find(tmp_path, [" ".join(WORDS)], items)) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "items.jsonl",
            '{"text": "a"}\n{"title": "b"}\n',
            r"items.jsonl:2: found keys title, but no text; expected 'text'",
        ),
        ("items.jsonl", '{"text": "a"}\n{oops\n', r"items.jsonl:2: \w+.*; correct or remove the record"),
        ("items.xml", "<a/>", "unknown file extension '.xml' .*; name the files"),
        ("data.idx", "", "data.idx: is tokenized; give the text"),
        ("packed.manifest.json", "{}", "packed: is a packed dataset; give the text from which it was packed"),
    ],
)
def test_bad_items(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as raised:
        for file in find_evaluation_files([str(tmp_path / name.removesuffix(".manifest.json"))]):
            list(read_items(file, "text"))
    assert "--decontaminate" in str(raised.value) and "--format" not in str(raised.value)
