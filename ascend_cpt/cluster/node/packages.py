"""Compare the installed packages with the pinned ones: `python -m ascend_cpt.cluster.node.packages base dev`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from ascend_cpt.errors import ClusterError, run_command

REQUIREMENTS_DIR = Path(__file__).resolve().parents[3] / "requirements"
OVERRIDES = "overrides.txt"


@dataclass(frozen=True, kw_only=True)
class PackageProblem:
    """A pinned package that is missing (`found` is None) or installed in another version."""

    name: str
    expected: str
    found: str | None

    def __str__(self) -> str:
        return f"{self.name}: expected {self.expected}, found {self.found or 'none'}"


def read_pins(path: Path) -> dict[str, str]:
    """Return {name: version} of a requirements file of `name==version` lines.

    Lines with a condition (`; platform_machine == ...`) are skipped, because only some machines need such packages. A
    name without a version takes its version from overrides.txt in the same folder. Raises ClusterError for a missing
    file or a name without a version in either file.
    """
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.txt") if p.name != OVERRIDES))
        raise ClusterError(f"no requirements file for {path.stem!r} ({path}); available: {known}")
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    parts = (line.partition("==") for line in lines if line and not line.startswith("#") and ";" not in line)
    pins = {name: version for name, _, version in parts}
    if unpinned := [name for name, version in pins.items() if not version]:
        overrides = {} if path.name == OVERRIDES else read_pins(path.parent / OVERRIDES)
        for name in unpinned:
            if name not in overrides:
                raise ClusterError(
                    f"{path}: {name} has no version, and {OVERRIDES} does not name it; pin it in one of them"
                )
            pins[name] = overrides[name]
    return pins


def find_problems(pins: dict[str, str]) -> list[PackageProblem]:
    """Return the packages in `pins` that are missing or differ in version. Local versions (`+cpu`) are ignored."""
    problems = []
    for name, expected in pins.items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            problems.append(PackageProblem(name=name, expected=expected, found=None))
            continue
        if found.partition("+")[0] != expected:
            problems.append(PackageProblem(name=name, expected=expected, found=found))
    return problems


def main(arguments: list[str] | None = None) -> int:
    """Print one line per problem. Raise ClusterError if a package is missing (a wrong version is only a warning)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", help="base, dev, ray or torch: the files of requirements/")
    names = parser.parse_args(arguments).names
    problems = [problem for name in names for problem in find_problems(read_pins(REQUIREMENTS_DIR / f"{name}.txt"))]
    for problem in problems:
        kind = "missing" if problem.found is None else "warning: not the tested version"
        print(f"{kind}: {problem}", file=sys.stderr)
    if num_missing := sum(problem.found is None for problem in problems):
        raise ClusterError(f"packages missing in {sys.executable}: {num_missing}; install them there (versions above)")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
