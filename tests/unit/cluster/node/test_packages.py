from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from ascend_cpt.cluster.node.packages import REQUIREMENTS_DIR, PackageProblem, find_problems, main, read_pins
from ascend_cpt.errors import ClusterError


@pytest.mark.parametrize("name", ["installer", "base", "dev", "ray", "torch", "overrides"])
def test_every_requirement_is_pinned(name: str) -> None:
    pins = read_pins(REQUIREMENTS_DIR / f"{name}.txt")
    assert pins
    assert all(pins.values())


def test_a_name_without_a_version_has_that_of_the_overrides(tmp_path: Path) -> None:
    (tmp_path / "base.txt").write_text("one==1.0\ntwo\n")
    (tmp_path / "overrides.txt").write_text("two==2.0\nthree==3.0\n")
    assert read_pins(tmp_path / "base.txt") == {"one": "1.0", "two": "2.0"}
    (tmp_path / "overrides.txt").write_text("three==3.0\n")
    with pytest.raises(ClusterError, match=r"base.txt: two has no version, and overrides.txt does not name it; pin it"):
        read_pins(tmp_path / "base.txt")


def test_comments_and_conditions_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text('# a comment\n\none==1.0\ntwo==2.0; platform_machine == "x86_64"\n')
    assert read_pins(path) == {"one": "1.0"}


def test_missing_and_other_versions_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"same": "1.0", "local": "2.0+cpu", "other": "3.1"}

    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(metadata, "version", version)
    problems = find_problems({"same": "1.0", "local": "2.0", "other": "3.0", "absent": "4.0"})
    assert problems == [
        PackageProblem(name="other", expected="3.0", found="3.1"),
        PackageProblem(name="absent", expected="4.0", found=None),
    ]
    assert [str(problem) for problem in problems] == [
        "other: expected 3.0, found 3.1",
        "absent: expected 4.0, found none",
    ]


def test_an_unknown_extra_is_refused() -> None:
    with pytest.raises(ClusterError, match="no requirements file for 'gpu'.*base, dev,.*ray, torch"):
        main(["gpu"])
