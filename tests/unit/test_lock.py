"""The lock files: every requirement is in them, and everything in them has hashes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ascend_cpt.cluster.node.packages import read_pins

FOLDER = Path(__file__).resolve().parents[2] / "requirements"
PYTHONS = ("3.10", "3.11")
# Lock file → the ones installed before it.
EARLIER = {"installer": (), "base": ("installer",)} | dict.fromkeys(("dev", "ray", "torch"), ("installer", "base"))
LOCKS = sorted((FOLDER / "lock").glob("*.txt"))
HASH = r"--hash=sha256:[0-9a-f]{64}"


def read_lock(path: Path) -> dict[str, tuple[str, list[str]]]:
    """Return {name: (version, hashes)}; fails at a line that is neither an option nor a pinned package with hashes."""
    entries: dict[str, tuple[str, list[str]]] = {}
    for line in path.read_text().replace(" \\\n", " ").splitlines():
        if line.startswith(("#", "--require-hashes", "--only-binary", "--no-binary")):
            continue
        entry = re.fullmatch(rf'([a-z0-9.-]+)==([\w.]+)( ; platform_machine == "\w+")?((?: +{HASH})+)', line)
        assert entry is not None, f"{path.name}: {line[:100]}"
        assert entry[1] not in entries, f"{path.name}: {entry[1]} is in it twice"
        entries[entry[1]] = (entry[2], entry[4].split())
    return entries


def read_versions(name: str, python: str) -> dict[str, str]:
    parts = (*EARLIER.get(name, ()), name)
    return {
        key: version
        for part in parts
        for key, (version, _) in read_lock(FOLDER / "lock" / f"{part}-{python}.txt").items()
    }


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_every_entry_has_hashes_and_only_jieba_has_no_wheel(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert read_lock(path)
    assert {"--require-hashes", "--only-binary :all:"} <= set(lines)
    assert [line for line in lines if line.startswith("--no-binary")] in ([], ["--no-binary jieba"])


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", EARLIER)
def test_every_requirement_is_locked_in_its_version(name: str, python: str) -> None:
    locked = read_versions(name, python)
    text = (FOLDER / f"{name}.txt").read_text()
    required = [re.split(r"[=; ]", line)[0] for line in text.splitlines() if line and not line.startswith("#")]
    assert required
    assert not [key for key in required if key.lower() not in locked]
    pins = read_pins(FOLDER / f"{name}.txt")
    assert {key: locked[key.lower()] for key in pins} == pins


def test_the_filters_are_locked() -> None:
    pins = read_pins(FOLDER / "filters.txt")
    locked = read_lock(FOLDER / "lock/filters-3.11.txt")
    assert pins
    assert {key: locked[key][0] for key in pins} == pins


@pytest.mark.parametrize("python", PYTHONS)
def test_overrides_are_locked(python: str) -> None:
    pins = read_pins(FOLDER / "overrides.txt")
    locked = read_versions("base", python)
    assert "pyarrow" in pins
    assert {key: locked[key] for key in pins} == pins


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_no_lock_has_what_would_make_a_known_vulnerability_reachable(path: Path) -> None:
    """With `kernels`, transformers 4 runs code that the config.json of a model names (CVE-2026-4372)."""
    assert "kernels" not in read_lock(path)
