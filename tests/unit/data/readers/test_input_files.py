"""Input files: folders, globs, formats and fingerprints."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from ascend_cpt.data.readers import input_files as inputs
from ascend_cpt.data.readers.input_files import find_input_files, fingerprint_file
from ascend_cpt.errors import DataError


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")


def names(*patterns: object, only_format: str | None = None) -> list[str]:
    return [file.name for file in find_input_files([str(pattern) for pattern in patterns], only_format=only_format)]


def test_a_folder_is_walked_in_sorted_order(tmp_path: Path) -> None:
    make(tmp_path, "b/2.jsonl", "b/10.JSON", "a.jsonl", "c/d/e.jsonl", "README", ".hidden.jsonl", ".git/x.jsonl")
    assert names(tmp_path) == ["a.jsonl", "b/10.JSON", "b/2.jsonl", "c/d/e.jsonl"]


def test_file_endings(tmp_path: Path) -> None:
    known = ["a.jsonl.GZ", "b.json.zst", "c.JSON", "d.jsonl"]
    make(tmp_path, *known, "e.parquet.gz", "f.gz", "g.jsonl.bz2")
    assert names(tmp_path) == known
    compressions = [file.compression for file in find_input_files([str(tmp_path)])]
    assert compressions == ["gz", "zst", "", ""]


def test_globs_and_several_inputs(tmp_path: Path) -> None:
    make(tmp_path, "b.jsonl", "a.jsonl", "c.jsonl", "d.txt")
    assert names(tmp_path / "[ab].jsonl") == ["a.jsonl", "b.jsonl"]
    assert names(tmp_path / "c.jsonl", tmp_path / "*.jsonl") == ["c.jsonl", "a.jsonl", "b.jsonl"], "none twice"
    with pytest.raises(DataError, match="no file matches"):
        names(tmp_path / "z*.jsonl")


def test_no_input(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing: no such file or folder"):
        names(tmp_path / "missing")
    with pytest.raises(DataError, match="contains no files to read"):
        names(tmp_path)
    make(tmp_path, "a.docx")
    with pytest.raises(DataError, match="unknown file extension"):
        names(tmp_path / "a.docx")


def test_mixed_formats_are_refused(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl", "b.csv", "c.json")
    with pytest.raises(DataError, match=r"mixed formats: csv \(b.csv\), json \(a.jsonl\); choose one with --format"):
        names(tmp_path)
    assert names(tmp_path, only_format="json") == ["a.jsonl", "c.json"]
    with pytest.raises(DataError, match="contains no parquet files"):
        names(tmp_path, only_format="parquet")


def test_fingerprint_depends_on_the_content(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    prints = []
    for text in ("one", "two", "two!", "one"):
        path.write_text(text)
        prints.append(fingerprint_file(find_input_files([str(path)])[0]))
    assert prints[0] == prints[3] and len(set(prints)) == 3


def test_fingerprint_of_a_large_file_samples_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "_WHOLE_FINGERPRINT_BYTES", 1000)
    monkeypatch.setattr(inputs, "_SAMPLE_BYTES", 10)
    path = tmp_path / "a.txt"

    def fingerprint(content: bytes, time_s: int) -> str:
        path.write_bytes(content)
        os.utime(path, (time_s, time_s))
        return fingerprint_file(find_input_files([str(path)])[0])

    base = fingerprint(b"a" * 2000, 1)
    assert fingerprint(b"a" * 2000, 1) == base
    assert fingerprint(b"a" * 2000, 2) != base, "time of change"
    assert fingerprint(b"a" * 2001, 1) != base, "size"
    assert fingerprint(b"a" * 1999 + b"b", 1) != base, "last sample"
    assert fingerprint(b"b" + b"a" * 1999, 1) != base, "first sample"


def test_loops_of_links_end_and_each_file_is_read_once(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl", "b/c.jsonl")
    for name in ("b/up", "b/again", "loop"):
        (tmp_path / name).symlink_to(tmp_path)
    os.link(tmp_path / "a.jsonl", tmp_path / "d.jsonl")
    (tmp_path / "e.jsonl").symlink_to(tmp_path / "a.jsonl")
    assert names(tmp_path) == ["a.jsonl", "b/c.jsonl"]
    assert names(tmp_path / "**" / "*.jsonl") == ["a.jsonl", "c.jsonl"]
    assert names(tmp_path / "**") == ["a.jsonl", "b/c.jsonl"]
    assert names(tmp_path / "**" / "b" / "**" / "c.*") == ["c.jsonl"]
    assert names(tmp_path / "a.jsonl", tmp_path / "d.jsonl") == ["a.jsonl"]


def test_only_regular_files_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, "a.jsonl")
    os.mkfifo(tmp_path / "b.jsonl")
    (tmp_path / "c.jsonl").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "d.jsonl"))
        assert names(tmp_path) == ["a.jsonl"]
        assert names(tmp_path / "*.jsonl") == ["a.jsonl"]
        for name, kind in (("b", "a named pipe"), ("c", "a device"), ("d", "a socket")):
            assert f"{name}.jsonl: {kind}, not a regular file; skipped" in caplog.text
            with pytest.raises(DataError, match=f"{name}.jsonl: {kind}, not a regular file"):
                names(tmp_path / f"{name}.jsonl")


def test_the_data_of_an_index_must_be_a_regular_file(tmp_path: Path) -> None:
    make(tmp_path, "a.idx")
    os.mkfifo(tmp_path / "a.bin")
    with pytest.raises(DataError, match=r"a\.bin: a named pipe, not a regular file"):
        fingerprint_file(find_input_files([str(tmp_path / "a.idx")])[0])


def formats(*patterns: object, only_format: str | None = None) -> dict[str, str]:
    found = find_input_files([str(pattern) for pattern in patterns], only_format=only_format)
    return {file.name: file.format for file in found}


def test_files_of_wikitext(tmp_path: Path) -> None:
    make(tmp_path, "wiki.train.tokens", "wiki.valid.raw", "wiki.test.raw.gz")
    assert formats(tmp_path) == {"wiki.train.tokens": "txt", "wiki.valid.raw": "txt", "wiki.test.raw.gz": "txt"}


def test_the_format_overrides_the_ending(tmp_path: Path) -> None:
    make(tmp_path, "a.dump", "b.json", "c.dump.gz", "d.gz", "README", "e.csv")
    for name in ("a.dump", "b.json", "c.dump.gz", "d.gz", "README"):
        assert formats(tmp_path / name, only_format="txt") == {name: "txt"}
    assert formats(tmp_path / "*.dump*", only_format="json") == {"a.dump": "json", "c.dump.gz": "json"}
    assert formats(tmp_path / "[be].*", only_format="csv") == {"e.csv": "csv"}, "known endings of a glob are filtered"
    assert formats(tmp_path, only_format="json") == {"b.json": "json"}, "as are the files of a folder"


def test_an_unknown_ending_names_the_flag(tmp_path: Path) -> None:
    make(tmp_path, "a.dump", "b.dump.gz")
    with pytest.raises(DataError, match=r"a.dump: unknown file extension '.dump' \(known: .*\); .*--format txt"):
        formats(tmp_path / "a.dump")
    with pytest.raises(DataError, match="a compressed parquet file cannot be read"):
        formats(tmp_path / "b.dump.gz", only_format="parquet")
    with pytest.raises(DataError, match="give the .idx file"):
        formats(tmp_path / "a.dump", only_format="indexed")
