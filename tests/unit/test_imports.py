"""Import rules between the folders of the package, and limits on file and function length."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO_ROOT = Path(__file__).resolve().parents[2]
PACKAGE = REPO_ROOT / "ascend_cpt"
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

# Each layer may import the layers below it; folders of one layer do not import each other.
LAYERS = (
    {"terminal_text", "locks", "installed"},
    {"errors", "files", "devices", "processes", "strict_json"},
    {"config", "model", "softnpu"},
    {"data", "recipe", "tasks", "weights", "monitor", "checkpoint", "cluster", "plan"},
    {"run"},
    {"backend"},
    {"experiment", "rehearsal", "simulate", "train", "tune"},
    {"train_stages", "evaluate", "mixture_search"},
    {"sweep_merges"},
)
LAYER_INDEX = {folder: level for level, folders in enumerate(LAYERS) for folder in folders}


def folder_of(path: Path) -> str:
    """Return the folder of a file in the package, or the file's own name at the top level."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def find_imports(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, module) of every import, also inside functions and by importlib with a constant name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            # `from ascend_cpt import backend` names the folder in the alias.
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "ascend_cpt" else [module]
            yield from ((node.lineno, name) for name in names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = ast.unparse(node.func)
            if function in {"import_module", "importlib.import_module", "__import__"}:
                yield node.lineno, str(node.args[0].value)


def may_import(folder: str, other: str) -> bool:
    """Return whether `other` is in a lower layer. The package's own __init__.py imports nothing."""
    return other not in LAYER_INDEX or (folder in LAYER_INDEX and LAYER_INDEX[other] < LAYER_INDEX[folder])


def find_violations(folder: str, relative_path: str, source: str) -> Iterator[str]:
    """Yield one line for each import in `source` that its folder may not have."""
    for line, module in find_imports(source):
        where = f"{relative_path}:{line}: imports {module}"
        top, _, rest = module.partition(".")
        if module.startswith("."):
            yield f"{where}: imports are absolute"
        elif top == "mindformers" and folder != "backend":
            yield f"{where}: only backend/ may"
        elif top == "mindspore" and folder != "backend" and relative_path != "ascend_cpt/data/packed/mindrecord.py":
            yield f"{where}: only backend/ and data/mindrecord.py may"
        elif top in {"tools", "tests", "benchmarks"}:
            yield f"{where}: the package does not import its users"
        elif top == "ascend_cpt" and (other := rest.partition(".")[0]) != folder and not may_import(folder, other):
            yield f"{where}: {folder} may only import what is below it"


def package_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def project_files() -> list[Path]:
    folders = ("ascend_cpt", "tools", "tests", "benchmarks")
    return [
        *REPO_ROOT.glob("*.py"),
        *(path for folder in folders for path in sorted((REPO_ROOT / folder).rglob("*.py"))),
    ]


def long_functions(source: str) -> Iterator[str]:
    """Yield `line: name (n lines)` of functions over the limit; the docstring does not count."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            num_lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if ast.get_docstring(node) is not None:
                num_lines -= (first.end_lineno or first.lineno) - first.lineno + 1
            if num_lines > MAX_FUNCTION_LINES:
                yield f"{node.lineno}: {node.name} ({num_lines} lines)"


def test_every_folder_has_a_layer() -> None:
    folders = {folder_of(path) for path in package_files()} - {"__init__"}
    assert folders <= LAYER_INDEX.keys(), f"add these folders to LAYERS: {sorted(folders - LAYER_INDEX.keys())}"


def test_imports_go_down_only() -> None:
    violations = [
        line
        for path in package_files()
        for line in find_violations(folder_of(path), path.relative_to(REPO_ROOT).as_posix(), path.read_text("utf-8"))
    ]
    assert not violations, "\n".join(violations)


def test_mindrecord_imports_mindspore_lazily() -> None:
    body = ast.parse((PACKAGE / "data/packed/mindrecord.py").read_text("utf-8")).body
    top_level = "\n".join(ast.unparse(node) for node in body if isinstance(node, ast.Import | ast.ImportFrom))
    assert "numpy" in top_level and "mindspore" not in top_level


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("data", "from ascend_cpt.recipe.budget import x"),
        ("data", "def f():\n    import ascend_cpt.run.mindformers_yaml"),
        ("config", "from ascend_cpt import data"),
        ("recipe", "import mindspore"),
        ("tasks", "from ascend_cpt.data.readers.records import x"),
        ("data", "def f():\n    from mindformers.tools import x"),
        ("plan", "import importlib\nimportlib.import_module('mindspore.ops')"),
        ("backend", "from ascend_cpt.train import main"),
        ("cluster", "from . import launcher"),
        ("errors", "from ascend_cpt.config import schema"),
    ],
)
def test_a_wrong_import_is_found(folder: str, source: str) -> None:
    assert list(find_violations(folder, f"ascend_cpt/{folder}/x.py", source))


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("data", "from ascend_cpt.errors import DataError"),
        ("data", "from ascend_cpt.data.packed.manifest import x"),
        ("backend", "import mindspore\nfrom mindformers import x\nfrom ascend_cpt.recipe.budget import y"),
        ("train", "from ascend_cpt.backend.training.trainer import x"),
    ],
)
def test_a_right_import_passes(folder: str, source: str) -> None:
    assert not list(find_violations(folder, f"ascend_cpt/{folder}/x.py", source))


def test_files_are_short() -> None:
    too_long = []
    for path in project_files():
        text = path.read_text("utf-8")
        docstring = ast.get_docstring(ast.parse(text)) or ""
        # A longer file gives the reason in its docstring: "Length: one table, read as a whole."
        if text.count("\n") > MAX_FILE_LINES and not re.search(r"^Length: \S", docstring, re.MULTILINE):
            too_long.append(f"{path.relative_to(REPO_ROOT)}: {text.count(chr(10))} lines")
    assert not too_long, "\n".join(too_long)


def test_functions_are_short() -> None:
    too_long = [
        f"{path.relative_to(REPO_ROOT)}:{function}"
        for path in project_files()
        if path.parent.name != "tools"  # their argument tables are lists, not logic
        for function in long_functions(path.read_text("utf-8"))
    ]
    assert not too_long, "\n".join(too_long)


def test_a_long_function_is_found() -> None:
    assert list(long_functions("def f():\n" + "    x = 1\n" * (MAX_FUNCTION_LINES + 1)))


def test_no_path_of_a_developer_machine() -> None:
    pattern = re.compile(r"/(?:work/(?:main|shared)|tmp/dev)\b")
    suffixes = {".py", ".sh", ".yaml", ".md", ".toml", ".txt"}
    folders = ("ascend_cpt", "configs", "scripts", "tools", "docs", "tests", "benchmarks", "requirements")
    files = [path for folder in folders for path in (REPO_ROOT / folder).rglob("*") if path.suffix in suffixes]
    found = [str(path.relative_to(REPO_ROOT)) for path in files if path.name != Path(__file__).name
             and pattern.search(path.read_text("utf-8"))]  # fmt: skip
    assert not found
