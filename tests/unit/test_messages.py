"""The pages that list the messages have all of them, and none that the program does not print."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

REPO_ROOT = Path(__file__).resolve().parents[2]
PACKAGE = REPO_ROOT / "ascend_cpt"
PAGES = ("docs/troubleshooting.md", "docs/messages.md")
MISTAKES = {
    "ClusterError", "UsageError", "MissingProcessError", "ConfigError", "DataError", "CheckpointError", "RunStopped",
    "StoppedBySignal", "argparse.ArgumentTypeError",
}  # fmt: skip
# A ValueError of these becomes a line about the configuration; elsewhere it is the program's own.
VALUE_ERRORS = ("recipe", "config", "backend/settle.py")
OWN = {"recipe/order.py": "expected at least one row, got *"}
MIN_LETTERS = 8


def flatten(node: ast.expr) -> str | None:
    """Return a text with a star for each placeholder; None when it is no text in the source."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in node.values)
    return None


def find_texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of what the user may read when something is wrong."""
    place = path.relative_to(PACKAGE).as_posix()
    kinds = MISTAKES | ({"ValueError"} if place.startswith(VALUE_ERRORS) else set())
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        call: ast.expr | None = None
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and ast.unparse(node.exc.func) in kinds:
            call = node.exc
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("problems.append"):
            call = node
        text = flatten(call.args[0]) if isinstance(call, ast.Call) and call.args else None
        # What consists of placeholders passes on a text that stands elsewhere.
        if text and sum(letter.isalpha() for letter in text) >= MIN_LETTERS and text != OWN.get(place):
            yield node.lineno, text


def read_patterns() -> dict[str, re.Pattern[str]]:
    """Return the messages of the pages: … stands for anything, ’ for a backtick."""
    text = "\n".join((REPO_ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    rows = re.findall(r"^\| `([^`]+)`", text, re.MULTILINE)
    return {
        row: re.compile("[^\n]*".join(re.escape(part) for part in row.replace("’", "`").split("…"))) for row in rows
    }


def test_every_message_is_on_a_page() -> None:
    patterns = [re.compile(f"^(?:{pattern.pattern})") for pattern in read_patterns().values()]
    missing = [
        f"{path.relative_to(REPO_ROOT)}:{line}: {text}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, text in find_texts(path)
        if not any(pattern.search(text) for pattern in patterns)
    ]
    assert not missing, f"add these to one of {PAGES}:\n" + "\n".join(missing)


def test_the_pages_have_no_other() -> None:
    texts = "\n".join(
        text
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant | ast.JoinedStr) and (text := flatten(node)) is not None
    )
    patterns = read_patterns()
    assert len(patterns) > 300
    stale = [row for row, pattern in patterns.items() if not pattern.search(texts)]
    assert not stale, "the source says this no more:\n" + "\n".join(stale)


def test_what_to_do_is_told() -> None:
    rows = (REPO_ROOT / "docs/messages.md").read_text(encoding="utf-8").splitlines()
    told = [row.rpartition("` | ")[2].strip(" |") if row.count("`") == 2 else row for row in rows if row[:3] == "| `"]
    assert len(told) > 300
    assert all(sum(letter.isalpha() for letter in cure) >= 4 for cure in told)
