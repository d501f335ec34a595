"""docs/troubleshooting.md lists no message that the program no longer prints."""

from __future__ import annotations

import ast
import re
from pathlib import Path

REPO_ROOT = Path(__file__).resolve().parents[2]
PACKAGE = REPO_ROOT / "ascend_cpt"
PAGE = REPO_ROOT / "docs/troubleshooting.md"


def flatten(node: ast.expr) -> str | None:
    """Return a string literal with `*` for each placeholder; None when the node is no string literal."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in node.values)
    return None


def read_patterns() -> dict[str, re.Pattern[str]]:
    """Return the messages of the page: … stands for any text."""
    rows = re.findall(r"^\| `([^`]+)`", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {row: re.compile("[^\n]*".join(re.escape(part) for part in row.split("…"))) for row in rows}


def find_stale(texts: str) -> list[str]:
    """Return the messages of the page that match no line of `texts`."""
    return [row for row, pattern in read_patterns().items() if not pattern.search(texts)]


def test_the_page_has_no_stale_message() -> None:
    texts = "\n".join(
        text
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant | ast.JoinedStr) and (text := flatten(node)) is not None
    )
    assert len(read_patterns()) > 50
    stale = find_stale(texts)
    assert not stale, "no source file has these messages:\n" + "\n".join(stale)
    assert len(find_stale("CMD is missing")) == len(read_patterns()) - 1, "a message that is not there is not found"
