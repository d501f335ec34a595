"""The list of bad records: line numbers and the limit."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest

from ascend_cpt.data.packed.manifest import Shard
from ascend_cpt.data.readers.documents import Reject
from ascend_cpt.data.rejects import add_counts, check_rejects, rejects_path, write_rejects
from ascend_cpt.data.shards.pack import ShardResult
from ascend_cpt.errors import DataError


def make_result(num_documents: int, rejects: list[Reject]) -> ShardResult:
    shard = Shard(
        file="a",
        size_bytes=1,
        sha256="",
        index_file="b",
        index_size_bytes=1,
        index_sha256="",
        num_rows=1,
        num_tokens=1,
        num_documents=num_documents,
        text_bytes=1,
    )
    return ShardResult(
        shards=(shard,),
        num_records=num_documents + len(rejects),
        num_filtered=0,
        rejects=tuple(rejects),
        rejected=dict(Counter(reject.kind for reject in rejects)),
    )


def make_reject(file: Path | str, position: int, line: int | None, kind: str = "malformed") -> Reject:
    return Reject(file=str(file), position=position, line=line, kind=kind, detail="")


def test_missing_line_numbers_are_filled_in(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"one\ntwo\n\nfour\nfive\n")
    rejects = [make_reject(path, 14, None), make_reject(path, 0, 1), make_reject(path, 4, None)]
    listed = write_rejects(str(tmp_path / "out"), [make_result(1, rejects[:2]), make_result(1, rejects[2:])])
    assert [reject.line for reject in listed] == [5, 1, 2]
    lines = rejects_path(str(tmp_path / "out")).read_text().splitlines()
    assert [json.loads(line)["line"] for line in lines] == [5, 1, 2]
    write_rejects(str(tmp_path / "out"), [make_result(1, [])])
    assert not rejects_path(str(tmp_path / "out")).exists(), "an old list would mislead"


def test_the_limit_is_a_fraction_of_the_records() -> None:
    rejects = [make_reject("a.jsonl", 0, 12), make_reject("a.jsonl", 9, 13, "empty")]
    results = [make_result(1998, rejects)]
    check_rejects("out", rejects, results, 0.001)
    with pytest.raises(DataError, match=r"2 of 2000 records rejected \(1 empty, 1 malformed\).* first is a.jsonl:12"):
        check_rejects("out", rejects, results, 0.0009)
    check_rejects("out", [], [make_result(5, [])], 0.0)
    with pytest.raises(DataError, match=r"and all are listed in out\.rejects"):
        check_rejects("out", rejects, results, 0)
    many = dataclasses.replace(results[0], rejected={"malformed": 30_000, "empty": 1})
    with pytest.raises(DataError, match=r"30001 of 2000 records .*, and the first 2 are listed in out\.rejects"):
        check_rejects("out", rejects, [many], 0)
    assert add_counts([{"empty": 1}, {"malformed": 1, "empty": 2}]) == {"empty": 3, "malformed": 1}


def test_no_documents() -> None:
    with pytest.raises(DataError, match="no documents in 0 records"):
        check_rejects("out", [], [make_result(0, [])], 1.0)
    rejects = [make_reject("a", 0, 1)]
    with pytest.raises(DataError, match="no documents in 1 records"):
        check_rejects("out", rejects, [make_result(0, rejects)], 1.0)
