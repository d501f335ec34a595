"""Filter configurations."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ascend_cpt.data.selection.datatrove_filters import PYTHON_VARIABLE, check_installed, load_filters
from ascend_cpt.errors import DataError


def write(folder: Path, content: str) -> str:
    path = folder / "filters.yaml"
    path.write_text(content)
    return str(path)


def test_load_filters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    content = "filters: [RegexFilter: {regex_exp: lorem}, GopherQualityFilter]\nminhash:\n"
    plan = load_filters(write(tmp_path, content))
    assert plan.filters == (("RegexFilter", {"regex_exp": "lorem"}), ("GopherQualityFilter", {}))
    assert plan.kinds == ("RegexFilter", "GopherQualityFilter", "MinHash") and plan.minhash == {}
    assert plan.python == sys.executable
    monkeypatch.setenv(PYTHON_VARIABLE, "elsewhere")
    assert load_filters(write(tmp_path, content)).python == "elsewhere"
    plan = load_filters(write(tmp_path, "python: here\nfilters: [C4ParagraphFilter]"))
    assert (plan.python, plan.minhash, plan.kinds) == ("here", None, ("C4ParagraphFilter",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("filters: [", "cannot be read"),
        ("- RegexFilter", "must be a mapping with"),
        ("filters: []", "must be a mapping with"),
        ("filter: [RegexFilter]\nminhash: {}", "unknown key 'filter'; did you mean filters"),
        ("filters: [GopherFilter]", "unknown filter 'GopherFilter'; did you mean Gopher"),
        ("filters: [LanguageFilter]", "unknown filter 'LanguageFilter'"),
        ("filters: [RegexFilter: x]", "RegexFilter: its arguments must be a mapping"),
        ("filters: [C4ParagraphFilter, C4ParagraphFilter]", "duplicate filter"),
        ("minhash: 3", "its options must be a mapping"),
        ("minhash: {buckets: 3}", "unknown minhash option 'buckets'; did you mean num_buckets"),
    ],
)
def test_invalid_configurations(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_filters(write(tmp_path, content))


def test_missing_datatrove_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be run: No such file"):
        check_installed(load_filters(write(tmp_path, f"python: {tmp_path}/none\nminhash: {{}}")))
    with pytest.raises(DataError, match=r"not installed for .*requirements/lock/filters-3.11.txt") as raised:
        check_installed(load_filters(write(tmp_path, "python: /bin/false\nminhash: {}")))
    assert "\n" not in str(raised.value)
