"""Extraction of documents from records: rejects by kind, and handlers."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from ascend_cpt.data.readers import documents as documents_module
from ascend_cpt.data.readers.documents import Document, Tally, extract_documents
from ascend_cpt.data.readers.formats import Record
from ascend_cpt.data.readers.handlers import GeneralPretrainHandler, Handler, load_handler, needed_columns
from ascend_cpt.data.readers.input_files import InputFile
from ascend_cpt.errors import DataError

FILE = InputFile(path="/a.jsonl", name="a.jsonl", format="json", size_bytes=1)


def extract(
    rows: list[Any], handler: Handler | None = None, keys: tuple[str, ...] = ("text",), max_bytes: int = 100
) -> tuple[list[Document], Tally]:
    tally = Tally()
    documents = [
        document
        for k, row in enumerate(rows)
        for document in extract_documents(
            handler or GeneralPretrainHandler(), keys, FILE, Record(k, k + 1, row), tally, max_bytes
        )
    ]
    tally.check()
    return documents, tally


def test_bad_records_are_counted_by_kind() -> None:
    rows = [
        {"text": "a"},
        {"body": "b"},
        {"text": None},
        {"text": 3},
        {"text": ""},
        {"text": "\ud800"},
        {"text": b"\xff"},
        {"text": "é" * 51},
    ]
    documents, tally = extract(rows)
    assert [document.texts for document in documents] == [("a",)]
    kinds = [(reject.line, reject.kind) for reject in tally.rejects]
    assert kinds == [
        (2, "missing_key"),
        (3, "null"),
        (4, "wrong_type"),
        (5, "empty"),
        (6, "invalid_utf8"),
        (7, "invalid_utf8"),
        (8, "too_long"),
    ]
    assert "available keys: body" in tally.rejects[0].detail


def test_a_bad_record_keeps_its_problem() -> None:
    tally = Tally()
    assert not list(
        extract_documents(GeneralPretrainHandler(), ("text",), FILE, Record(7, None, None, "malformed"), tally, 100)
    )
    assert [(reject.kind, reject.position, reject.line) for reject in tally.rejects] == [("malformed", 7, None)]


def test_bytes_are_text_and_sizes_are_utf8() -> None:
    documents, _ = extract([{"text": "\u00e9a".encode()}, {"text": "\u00e9\U0001f600"}])
    assert [(document.texts, document.text_bytes) for document in documents] == [
        (("\u00e9a",), (3,)),
        (("\u00e9\U0001f600",), (6,)),
    ]


def test_several_keys_stay_aligned() -> None:
    documents, tally = extract([{"a": "1", "b": "2"}, {"a": "3", "b": ""}, {"b": "4"}], keys=("a", "b"))
    assert [document.texts for document in documents] == [("1", "2")]
    assert [reject.kind for reject in tally.rejects] == ["empty", "missing_key"]


class SplittingHandler:
    def extract(self, record: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        for part in record["text"].split("|"):
            if part != "skip":
                yield {"text": part}


def test_a_handler_can_yield_any_number_of_documents() -> None:
    documents, tally = extract([{"text": "a|b||c"}, {"text": "skip"}, {}], SplittingHandler())
    assert [document.texts for document in documents] == [("a",), ("b",), ("c",)]
    assert (tally.num_records, tally.num_extra, tally.num_documents, tally.num_filtered) == (3, 3, 3, 1)
    assert [reject.kind for reject in tally.rejects] == ["empty", "handler_error"]
    assert "KeyError" in tally.rejects[1].detail


def test_unknown_handler_suggests_the_nearest() -> None:
    with pytest.raises(DataError, match=r"GenralPretrain: unknown; did you mean GeneralPretrainHandler\?"):
        load_handler("GenralPretrain")


def test_custom_handlers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_handlers.py").write_text(
        "class Title:\n"
        "    def extract(self, record):\n"
        "        yield {'text': record['title'] + record['text']}\n"
        "class NoMethod: pass\n"
        "class Needs:\n"
        "    def __init__(self, x): pass\n"
        "    def extract(self, record): pass\n"
    )
    handler = load_handler("my_handlers:Title")
    assert extract([{"title": "a", "text": "b"}], handler)[0][0].texts == ("ab",)
    assert needed_columns(handler, ("text",)) is None, "it may need any column"
    assert needed_columns(GeneralPretrainHandler(), ("text",)) == ("text",)
    for name, message in (
        ("my_handlers:Absent", "has no attribute 'Absent'"),
        ("no_such_module:X", "No module named 'no_such_module'"),
        ("my_handlers:NoMethod", "has no method extract"),
        ("my_handlers:Needs", "cannot be created without arguments"),
    ):
        with pytest.raises(DataError, match=message):
            load_handler(name)
    sys.modules.pop("my_handlers")


def test_a_handler_that_returns_no_mapping() -> None:
    class Handler:
        def extract(self, record: Mapping[str, Any]) -> Iterator[Any]:
            yield "text"

    documents, tally = extract([{"text": "a"}], Handler())
    assert not documents and tally.rejected == {"wrong_type": 1}


def test_only_the_first_rejects_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents_module, "MAX_LISTED", 3)
    _, tally = extract([{"text": ""}] * 5 + [{"text": None}])
    assert [reject.line for reject in tally.rejects] == [1, 2, 3]
    assert tally.rejected == {"empty": 5, "null": 1}
