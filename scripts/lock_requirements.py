"""Write requirements/lock/: all packages of each environment, with the SHA-256 of their wheels for both machines.

    python3.11 -m venv /tmp/lock && /tmp/lock/bin/pip install uv==0.13.9 packaging==26.3
    /tmp/lock/bin/python scripts/lock_requirements.py [NAME ...]

Versions in the existing lock files are kept, except those of the packages given as NAME and of changed pins. `--all`
renews all. Needs Python 3.11 and network access to PyPI. Stops at a package that has no wheel for one of the machines.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomllib
from packaging.markers import Marker
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename

FOLDER = Path(__file__).resolve().parents[1] / "requirements"
PYTHONS = ("3.10", "3.11")
MACHINES = ("x86_64", "aarch64")
# The newest glibc that may be needed: that of RHEL 8. All supported images have a newer one.
MAX_GLIBC_MINOR = 28
# Environment → the requirements it is resolved from, and the lock files installed before it.
ENVIRONMENTS = {
    "installer": (("installer",), ()),
    "base": (("installer", "base"), ("installer",)),
    "dev": (("installer", "base", "dev"), ("installer", "base")),
    "ray": (("installer", "base", "ray"), ("installer", "base")),
    "torch": (("installer", "base", "torch"), ("installer", "base")),
    "filters": (("filters",), ()),
}
# filters.txt pins a version of regex that needs Python 3.11.
ONLY_FOR = {"filters": "3.11"}
# No wheel on PyPI; built from the source package with the setuptools of the lock.
SOURCE_ONLY = ("jieba",)


@dataclass(frozen=True, kw_only=True)
class Locked:
    """One entry of a lock file; `machines` are those that need the package."""

    name: str
    version: str
    machines: tuple[str, ...]
    hashes: tuple[str, ...]

    def __str__(self) -> str:
        marker = "" if self.machines == MACHINES else f' ; platform_machine == "{self.machines[0]}"'
        return " \\\n".join([f"{self.name}=={self.version}{marker}", *(f"    --hash=sha256:{x}" for x in self.hashes)])


def read_pins(path: Path) -> dict[str, str]:
    """Return {canonical name: version} of the `name==version` lines of a file; {} if it is missing."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    found = re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE)
    return {str(canonicalize_name(name)): version for name, version in found}


def supported_tags(python: str, machine: str) -> set[Tag]:
    """Return the wheel tags that CPython `python` accepts on Linux with glibc up to 2.28."""
    minor = int(python.partition(".")[2])
    platforms = [f"manylinux_2_{glibc}_{machine}" for glibc in range(5, MAX_GLIBC_MINOR + 1)]
    platforms += [f"{old}_{machine}" for old in ("manylinux1", "manylinux2010", "manylinux2014", "linux")]
    return {*cpython_tags((3, minor), platforms=platforms), *compatible_tags((3, minor), f"cp3{minor}", platforms)}


def is_needed(marker: str | None, python: str, machine: str) -> bool:
    """Return whether a package with this environment marker is needed on Linux on this machine."""
    environment = {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }
    return marker is None or Marker(marker).evaluate(environment)


def find_files(package: dict[str, Any], python: str, machine: str) -> list[dict[str, Any]]:
    """Return the files of a package that can be installed: its wheels, or the source package of a known exception."""
    tags = supported_tags(python, machine)
    wheels = package.get("wheels", [])
    if files := [wheel for wheel in wheels if parse_wheel_filename(wheel["url"].split("/")[-1])[3] & tags]:
        return files
    title = f"{package['name']} {package['version']}"
    if package["name"] not in SOURCE_ONLY:
        sys.exit(f"error: {title} has no wheel for Python {python} on {machine}; choose another version")
    print(f"{python} {machine}: {title} has only a source package")
    return [package["sdist"]]


def lock_package(package: dict[str, Any], python: str) -> Locked | None:
    """Convert an entry of pylock.toml; None if no machine needs it."""
    machines = tuple(machine for machine in MACHINES if is_needed(package.get("marker"), python, machine))
    if not machines:
        return None
    files = [file for machine in machines for file in find_files(package, python, machine)]
    hashes = tuple(sorted({file["hashes"]["sha256"] for file in files}))
    return Locked(name=package["name"], version=package["version"], machines=machines, hashes=hashes)


def resolve(names: tuple[str, ...], python: str, constraints: dict[str, str]) -> Iterator[Locked]:
    """Yield all packages of requirements/NAME.txt for one Python, resolved by uv."""
    with tempfile.TemporaryDirectory() as folder:
        pylock, limits = Path(folder, "pylock.toml"), Path(folder, "constraints.txt")
        limits.write_text("".join(f"{name}=={version}\n" for name, version in constraints.items()), encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "uv",
            "pip",
            "compile",
            "--quiet",
            "--no-config",
            "--universal",
            "--no-sources",
        ]
        command += ["--python-version", python, "--format", "pylock.toml", "-o", str(pylock), "-c", str(limits)]
        if "base" in names:
            command += ["--override", str(FOLDER / "overrides.txt")]
        subprocess.run([*command, *(str(FOLDER / f"{name}.txt") for name in names)], check=True)
        packages = tomllib.loads(pylock.read_text(encoding="utf-8"))["packages"]
    yield from (locked for package in packages if (locked := lock_package(package, python)) is not None)


def kept_versions(name: str, python: str, sources: tuple[str, ...], upgrades: set[str]) -> dict[str, str]:
    """Return the versions of the present lock files, without those that are to be renewed or pinned otherwise."""
    _, before = ENVIRONMENTS[name]
    kept: dict[str, str] = {}
    for part in (*before, name):
        kept |= read_pins(FOLDER / "lock" / f"{part}-{python}.txt")
    pinned: dict[str, str] = {}
    for source in (*sources, *(["overrides"] if "base" in sources else [])):
        pinned |= read_pins(FOLDER / f"{source}.txt")
    return {key: value for key, value in kept.items() if key not in upgrades and key not in pinned}


def write_lock(name: str, python: str, upgrades: set[str] | None) -> None:
    """Write one lock file, with the versions of those installed before it; None for `upgrades` renews all others."""
    sources, before = ENVIRONMENTS[name]
    installed: dict[str, str] = {}
    for part in before:
        installed |= read_pins(FOLDER / "lock" / f"{part}-{python}.txt")
    kept = {} if upgrades is None else kept_versions(name, python, sources, upgrades)
    packages = [package for package in resolve(sources, python, kept | installed) if package.name not in installed]
    lines = ["# Made by scripts/lock_requirements.py: install with --no-deps --require-hashes.", "--require-hashes"]
    # --no-binary in each file installed with base: `--only-binary :all:` of a later file would undo that of base.
    lines += ["--only-binary :all:", *(f"--no-binary {key}" for key in SOURCE_ONLY if "base" in sources)]
    path = FOLDER / "lock" / f"{name}-{python}.txt"
    temporary = path.with_suffix(".tmp")
    temporary.write_text("\n".join([*lines, *map(str, packages)]) + "\n", encoding="utf-8")
    temporary.replace(path)
    print(f"{path.relative_to(FOLDER.parent)}: {len(packages)} packages")


def main() -> None:
    """Write the lock files in the order in which they are installed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="package to upgrade to its newest version")
    parser.add_argument("--all", action="store_true", help="upgrade all packages to their newest versions")
    arguments = parser.parse_args()
    upgrades = None if arguments.all else {str(canonicalize_name(name)) for name in arguments.names}
    for python in PYTHONS:
        for name in ENVIRONMENTS:
            if ONLY_FOR.get(name, python) == python:
                write_lock(name, python, upgrades)


if __name__ == "__main__":
    main()
