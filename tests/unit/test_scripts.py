"""The shell scripts: shellcheck, which Python they choose, and when they install."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPO_ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted([*REPO_ROOT.glob("*.sh"), *(REPO_ROOT / "scripts").glob("*.sh"), REPO_ROOT / ".ci" / "run"])

# A Python that only records its arguments. `-m venv` makes a copy of itself, as the real one does.
FAKE_PYTHON = """\
#!/usr/bin/env bash
echo "$*" >>"$FAKE_LOG"
case "$*" in
    "-m venv --clear "*) mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
    "-m pip install "*) exit "${FAKE_PIP_CODE:-0}" ;;
    *print*) echo 3.11 ;;
    *"import sys, pip"*) exit "${FAKE_BROKEN_CODE:-0}" ;;
esac
"""


def put_program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


class Clone:
    """A bare clone with only the files that python_env.sh needs, and a PATH of fake programs."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a clone"
        self.programs = folder / "programs"
        self.log = folder / "log.txt"
        (self.root / "scripts").mkdir(parents=True)
        shutil.copy(REPO_ROOT / "scripts/python_env.sh", self.root / "scripts")
        shutil.copytree(REPO_ROOT / "requirements", self.root / "requirements")
        put_program(self.programs / "sleep", "#!/usr/bin/env bash\n")
        put_program(self.programs / "python3.11", FAKE_PYTHON)

    def run(self, code: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Source python_env.sh, run `code`, and print PYTHON last; `self.log` then holds this run's calls only."""
        self.log.write_text("")
        script = f'set -euo pipefail; source "{self.root}/scripts/python_env.sh"; {code}; echo "$PYTHON"'
        inherited = {name: value for name, value in os.environ.items() if name != "ASCEND_CPT_PYTHON"}
        search_path = f"{self.programs}:{os.environ['PATH']}"
        environ = inherited | {"PATH": search_path, "FAKE_LOG": str(self.log), "HOME": str(self.root)} | environ
        return subprocess.run(["bash", "-c", script], cwd="/", env=environ, text=True, capture_output=True, check=False)

    def num_installs(self) -> int:
        return self.log.read_text().count("-m pip install ")

    @property
    def venv_python(self) -> str:
        return str(self.root / ".venv/bin/python")


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(script: Path) -> None:
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (its wheel exists for x86-64 only)")
    folders = f"{REPO_ROOT}:{REPO_ROOT / 'scripts'}"
    command = [shellcheck, "--external-sources", "--source-path", folders, str(script)]
    result = subprocess.run(command, text=True, capture_output=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_syntax(script: Path) -> None:
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0


def test_the_path_is_the_last_choice(clone: Clone) -> None:
    python = put_program(clone.programs / "python3", FAKE_PYTHON)
    assert clone.run(":").stdout == f"{python}\n"


def test_the_variable_precedes_venv_and_venv_precedes_the_path(clone: Clone) -> None:
    put_program(Path(clone.venv_python), FAKE_PYTHON)
    assert clone.run(":").stdout == f"{clone.venv_python}\n"
    assert clone.run(":", ASCEND_CPT_PYTHON=sys.executable).stdout == f"{sys.executable}\n"


def test_a_wrong_variable_is_one_clear_line(clone: Clone) -> None:
    result = clone.run(":", ASCEND_CPT_PYTHON="/no/such/python")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ASCEND_CPT_PYTHON=/no/such/python is not a program")


def test_nothing_is_exported(clone: Clone) -> None:
    assert clone.run("env").stdout.count("REPO_ROOT=") == 0


def test_packages_are_installed_once(clone: Clone) -> None:
    first = clone.run("ensure_env dev")
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[-1] == clone.venv_python
    calls = clone.log.read_text()
    installs = [line for line in calls.splitlines() if line.startswith("-m pip install ")]
    assert clone.num_installs() == len(installs) == 2
    assert all(" --no-deps --require-hashes " in line for line in installs)
    locks = f"{clone.root}/requirements/lock"
    assert installs[0].endswith(f" -r {locks}/installer-3.11.txt")
    assert installs[1].endswith(f" --no-build-isolation -r {locks}/base-3.11.txt -r {locks}/dev-3.11.txt")
    second = clone.run("ensure_env dev")
    assert "matches the pinned versions" in second.stdout
    assert clone.num_installs() == 0


def test_changed_pins_and_other_extras_install_again(clone: Clone) -> None:
    clone.run("ensure_env")
    clone.run("ensure_env dev")
    assert clone.num_installs() == 2
    for name in ("base.txt", "lock/base-3.11.txt"):
        with (clone.root / "requirements" / name).open("a") as requirements:
            requirements.write("another==1.0\n")
        clone.run("ensure_env")
        assert clone.num_installs() == 2
        clone.run("ensure_env")
        assert clone.num_installs() == 0


def test_a_failed_installation_is_tried_three_times_and_leaves_no_stamp(clone: Clone) -> None:
    result = clone.run("ensure_env", FAKE_PIP_CODE="1")
    assert result.returncode == 1
    assert clone.num_installs() == 3
    assert result.stderr.splitlines()[-1].startswith("error: pip could not install the requirements")
    clone.run("ensure_env")
    assert clone.num_installs() == 2


def test_a_broken_venv_is_made_again(clone: Clone) -> None:
    put_program(Path(clone.venv_python), "#!/usr/bin/env bash\nexit 1\n")
    result = clone.run("ensure_env")
    assert result.returncode == 0, result.stderr
    assert "-m venv --clear" in clone.log.read_text()
    Path(clone.venv_python).unlink()  # an interrupted `python -m venv`
    clone.run("ensure_env")
    assert "-m venv --clear" in clone.log.read_text()


def test_a_missing_python_is_one_clear_line(clone: Clone) -> None:
    for name in ("python3.11", "python3.10", "python3"):
        put_program(clone.programs / name, "#!/usr/bin/env bash\nexit 1\n")
    result = clone.run("ensure_env", PYENV_ROOT="/no/such/folder")
    assert result.returncode == 2
    assert result.stderr.startswith("error: no Python 3.10 or 3.11 with venv found")


def test_with_the_variable_missing_packages_are_named_and_not_installed(clone: Clone) -> None:
    shutil.copytree(REPO_ROOT / "ascend_cpt/cluster", clone.root / "ascend_cpt/cluster")
    for name in ("__init__.py", "errors.py", "installed.py", "terminal_text.py"):
        shutil.copy(REPO_ROOT / "ascend_cpt" / name, clone.root / "ascend_cpt")
    (clone.root / "requirements/base.txt").write_text("no-such-package==1.0\npytest==0.1\n")
    result = clone.run("ensure_env", ASCEND_CPT_PYTHON=sys.executable)
    assert result.returncode == 2
    lines = result.stderr.splitlines()
    assert lines[0] == "missing: no-such-package: expected 1.0, found none"
    assert lines[1].startswith("warning: not the tested version: pytest: expected 0.1, found ")
    assert lines[2].startswith("error: packages missing in ")
    assert not (clone.root / ".venv").exists()


def test_the_wheelhouse_has_what_the_locks_name(clone: Clone) -> None:
    shutil.copy(REPO_ROOT / "scripts/make_wheelhouse.sh", clone.root / "scripts")
    put_program(clone.programs / "python3", FAKE_PYTHON)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return clone.run(f"bash '{clone.root}/scripts/make_wheelhouse.sh' {' '.join(arguments)}", DRY_RUN="1")

    commands = run("wheels", "aarch64", "3.10", "ray").stdout.splitlines()[:-1]
    assert [line.rpartition("/lock/")[2] for line in commands] == [
        "installer-3.10.txt",
        "base-3.10.txt",
        "ray-3.10.txt",
    ]
    for line in commands:
        assert " --dest wheels --no-deps --require-hashes --no-build-isolation --python-version 3.10 " in line
        assert " --platform manylinux_2_28_aarch64 " in line
    assert "wheelhouse" in run().stdout
    assert run("wheels", "riscv64").stderr == "error: no wheels for riscv64; it must be aarch64 or x86_64\n"
    assert run("wheels", "aarch64", "3.9").stderr == "error: no lock files for Python 3.9; it must be 3.10 or 3.11\n"


def run_step(number: int, **arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a RUN step of the Dockerfile in sh, without Docker, with build arguments."""
    text = (REPO_ROOT / "Dockerfile").read_text().replace("\\\n", "")
    step = [line.removeprefix("RUN ") for line in text.splitlines() if line.startswith("RUN ")][number]
    environ = {"PATH": os.environ["PATH"], "ALLOW_TAG": "", "USER_ID": "1000"} | arguments
    return subprocess.run(["sh", "-c", step], env=environ, text=True, capture_output=True, check=False)


def test_the_image_is_named_by_digest_and_its_user_is_not_root() -> None:
    digest = "example.org/cann@sha256:" + "0" * 64
    assert run_step(0, CANN_IMAGE=digest).returncode == 0
    assert run_step(0, CANN_IMAGE="cann:8.5", ALLOW_TAG="1").returncode == 0
    result = run_step(0, CANN_IMAGE="cann:8.5")
    assert (result.returncode, result.stderr.split(";")[0]) == (2, "error: CANN_IMAGE=cann:8.5 has no digest")
    result = run_step(0, CANN_IMAGE=digest, USER_ID="0")
    assert (result.returncode, result.stderr.split(";")[0]) == (2, "error: USER_ID is 0 (root)")
    lines = (REPO_ROOT / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER ")] == ["USER cpt"]
    assert not any("docker run" in line and "--privileged" in line for line in lines)
    assert [line for line in lines if "--cap-drop ALL --security-opt no-new-privileges" in line]
