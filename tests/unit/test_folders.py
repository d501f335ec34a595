"""The shape within the packages: which folder of a package imports which, and how many files lie beside each other."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO_ROOT = Path(__file__).resolve().parents[2]
PACKAGE = REPO_ROOT / "ascend_cpt"
MAX_FILES = 12

# Each level may import the ones before it. Files and folders of one level do not import each other.
LEVELS: dict[str, tuple[set[str], ...]] = {
    "data": (
        {"tokenizing", "dataset_files"},
        {"packed"},
        {"readers", "inspection", "sample", "adoption"},
        {"settings", "preview", "shards"},
        {"identity", "rejects", "selection", "texts"},
        {"contamination", "workspace"},
        {"pipeline"},
        {"pack_program"},
    ),
    "cluster": ({"messages", "node"}, {"job"}, {"launch"}),
    "run": (
        {"document_attention", "growth", "lora", "raw_sources", "recipe", "verified"},
        {"resolve_recipe"},
        {"resolved_run"},
        {"layout_change"},
        {"checks", "mindformers_yaml", "picture", "starting_point", "trained_model"},
        {"evaluation"},
        {"resolve"},
        {"planning"},
        {"summary", "export"},
        {"launch", "merging", "replay"},
    ),
    "backend": (
        {"collectives", "compile_cache", "cpu", "mindformers_keys"},
        {"models"},
        {"checkpointing", "inference"},
        {"training"},
        {"evaluation_network", "simulated_rank"},
    ),
}


def find_imports(package: str, source: str) -> Iterator[str]:
    """Yield the file or folder of `package` that each import of `source` names."""
    prefix = f"ascend_cpt.{package}"
    for node in ast.walk(ast.parse(source)):
        modules = []
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        yield from (name.split(".")[2] for name in modules if name.startswith(f"{prefix}."))


def find_violations(package: str, member: str, source: str) -> list[str]:
    """Return the members of a package that `member` imports and must not."""
    level = {name: index for index, names in enumerate(LEVELS[package]) for name in names}
    return [name for name in find_imports(package, source) if name != member and level[name] >= level[member]]


def list_modules(package: str) -> list[tuple[str, Path]]:
    """Return (member of the package, file) of every module of a package."""
    folder = PACKAGE / package
    paths = [path for path in sorted(folder.rglob("*.py")) if path != folder / "__init__.py"]
    return [(path.relative_to(folder).with_suffix("").parts[0], path) for path in paths]


@pytest.mark.parametrize("package", LEVELS)
def test_every_member_has_a_level(package: str) -> None:
    assert {member for member, _ in list_modules(package)} == set().union(*LEVELS[package])


@pytest.mark.parametrize("package", LEVELS)
def test_imports_within_a_package_go_down_only(package: str) -> None:
    wrong = {
        str(path.relative_to(REPO_ROOT)): found
        for member, path in list_modules(package)
        if (found := find_violations(package, member, path.read_text("utf-8")))
    }
    assert not wrong


@pytest.mark.parametrize(
    ("member", "source"),
    [
        ("packed", "from ascend_cpt.data.shards.task import x"),
        ("readers", "from ascend_cpt.data import sample"),
        ("tokenizing", "def f():\n    import ascend_cpt.data.packed.manifest"),
    ],
)
def test_an_import_that_goes_up_is_found(member: str, source: str) -> None:
    assert find_violations("data", member, source)


def test_folders_are_small() -> None:
    counts = Counter(path.parent for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
    assert not {str(folder.relative_to(REPO_ROOT)): count for folder, count in counts.items() if count > MAX_FILES}


def test_every_folder_is_a_package() -> None:
    """setuptools skips a folder without __init__.py, and an installed copy would lack it."""
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert not [str(folder.relative_to(REPO_ROOT)) for folder in folders if not (folder / "__init__.py").is_file()]
