"""A Chinese page has the same commands, code, headings, tables, figures and links as its English page."""

from __future__ import annotations

import calendar
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO_ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "README.zh.md": "README.md",
    **{f"docs/zh/{path.name}": f"docs/{path.name}" for path in sorted((REPO_ROOT / "docs/zh").glob("*.md"))},
}
"""Chinese page → English page."""

FENCE = re.compile(r"^ *```")
COMMENT = re.compile(r"(^| +)# .*$")
DESCRIPTION = re.compile(r"(?<=\S) {2,}(?=\S).*$")
"""Of a file in a list of files, after several spaces."""
CODE = re.compile(r"`([^`\n]+)`")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def read(name: str) -> str:
    return (REPO_ROOT / name).read_text(encoding="utf-8")


def split(text: str) -> tuple[list[str], str]:
    """Return the lines of the code blocks, fenced or indented by four spaces, and the text between them."""
    code, prose, is_fenced, is_blank = [], [], False, True
    for line in text.splitlines():
        if FENCE.match(line):
            is_fenced = not is_fenced
            code.append(line.strip())
        elif is_fenced or (line.startswith("    ") and (is_blank or (code and prose[-1:] == [""]))):
            code.append(line)
            if not is_fenced:
                continue
        else:
            prose.append(line)
        is_blank = not line.strip()
    return code, "\n".join(prose)


def find_code(text: str) -> list[str]:
    """Return the lines of code without comments and descriptions, which are translated."""
    return [DESCRIPTION.sub("", COMMENT.sub("", line)).strip() for line in split(text)[0]]


def find_headings(text: str) -> list[tuple[str, str]]:
    """Return level and number of each heading."""
    lines = split(text)[1].splitlines()
    return [(line.split(" ")[0], *re.findall(r"^#+ (\d*)", line)) for line in lines if line.startswith("#")]


def find_rows(text: str) -> list[set[str]]:
    """Return the numbers and the code in each row of each table."""
    rows = [line for line in split(text)[1].splitlines() if line.startswith("|")]
    return [{*CODE.findall(row), *find_numbers(row)} for row in rows]


def find_numbers(text: str) -> list[str]:
    """Return the numbers outside of code and links, and the numbers of months."""
    for number, month in enumerate(calendar.month_name[1:], start=1):
        text = re.sub(rf"\b{month} (?=\d{{4}})", f"{number} ", text)
    return NUMBER.findall(CODE.sub("", LINK.sub("", split(text)[1])))


def find_anchors(text: str) -> set[str]:
    """Return the anchors of the headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", split(text)[1], re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


def find_targets(name: str) -> Iterator[tuple[Path, str]]:
    """Yield file and anchor of every link within the repository."""
    for link in LINK.findall(split(read(name))[1]):
        if not link.startswith(("http://", "https://")):
            path, _, anchor = link.partition("#")
            yield ((REPO_ROOT / name).parent / path).resolve() if path else REPO_ROOT / name, anchor


def find_english(path: Path) -> Path:
    """Return the English page of a page."""
    relative = path.relative_to(REPO_ROOT).as_posix()
    return REPO_ROOT / PAGES.get(relative, relative)


def test_pages_are_found() -> None:
    assert set(PAGES) >= {"README.zh.md", *(f"docs/zh/{n}.md" for n in ("recipes", "preprocessing", "multi_node"))}


@pytest.mark.parametrize("chinese", PAGES)
def test_commands_and_code_are_the_same(chinese: str) -> None:
    assert find_code(read(chinese)) == find_code(read(PAGES[chinese]))


@pytest.mark.parametrize("chinese", PAGES)
def test_headings_and_tables_are_the_same(chinese: str) -> None:
    text, english = read(chinese), read(PAGES[chinese])
    assert find_headings(text) == find_headings(english)
    assert find_rows(text) == find_rows(english)


@pytest.mark.parametrize("chinese", PAGES)
def test_names_in_the_text_are_the_same(chinese: str) -> None:
    """Flags, keys, files and values: what was added to one page is in the other."""
    found, expected = (set(CODE.findall(split(read(name))[1])) for name in (chinese, PAGES[chinese]))
    assert found == expected


@pytest.mark.parametrize("chinese", PAGES)
def test_figures_are_the_same(chinese: str) -> None:
    """Every number in digits, as often in one page as in the other; months are numbers in Chinese."""
    found, expected = (Counter(find_numbers(read(name))) for name in (chinese, PAGES[chinese]))
    assert found == expected, f"more {found - expected}, fewer {expected - found}"


@pytest.mark.parametrize("chinese", PAGES)
def test_links_lead_to_the_same_pages(chinese: str) -> None:
    english = PAGES[chinese]
    ours = {REPO_ROOT / chinese, REPO_ROOT / english}
    found = list(find_targets(chinese))
    for path, anchor in found:
        assert path.exists(), path
        assert not anchor or anchor in find_anchors(path.read_text(encoding="utf-8")), f"{path}#{anchor}"
        translated = f"docs/zh/{path.name}"
        assert translated not in PAGES or path in {REPO_ROOT / translated, *ours}, f"{path} has a Chinese page"
    pages = [{find_english(path) for path, _ in targets} for targets in (found, find_targets(english))]
    assert pages[0] - ours == pages[1] - ours


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\n\n    run x  # why\n    b  \n\nc", ["run x", "b"]),
        ("```bash\nrun `x`   # why\n# all\n```\n", ["```bash", "run `x`", "", "```"]),
        ("    run_cpt.py       training\n", ["run_cpt.py"]),
        ("- item\n    continued\n", []),
    ],
)
def test_code_is_found(text: str, expected: list[str]) -> None:
    assert find_code(text) == expected
