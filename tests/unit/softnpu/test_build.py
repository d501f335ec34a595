"""Building the emulated CANN libraries, and which symbols they define."""

from __future__ import annotations

import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ascend_cpt.errors import ClusterError
from ascend_cpt.softnpu import build
from ascend_cpt.softnpu.assembly import render_assembly
from ascend_cpt.softnpu.environment import (
    LIBRARIES,
    MINDSPORE_VERSION,
    check_mindspore,
    enter,
    is_requested,
    make_environment,
    prepare,
)
from ascend_cpt.softnpu.symbols import find_mindspore, list_wanted_symbols

WANTED = Path(__file__).with_name(f"wanted_symbols_{MINDSPORE_VERSION}.txt")


def list_defined(library: Path) -> set[str]:
    lines = subprocess.run(["nm", "-D", "--defined-only", str(library)], capture_output=True, text=True, check=True)
    return {line.split()[-1] for line in lines.stdout.splitlines()}


def test_plugin_wants_what_the_operators_were_checked_against() -> None:
    """A difference means another MindSpore: check the signatures, then MINDSPORE_VERSION and this list."""
    assert list_wanted_symbols(find_mindspore()) == WANTED.read_text().split()


def test_every_wanted_symbol_is_defined_and_no_function_of_the_system(library_folder: Path) -> None:
    defined = list_defined(library_folder / "libsoftnpu.so")
    missing = {symbol for symbol in WANTED.read_text().split() if symbol not in defined}
    assert not missing
    assert not {"getenv", "getpid", "half", "malloc", "free"} & defined
    assert not [symbol for symbol in defined if symbol.startswith("_Z") and symbol not in WANTED.read_text().split()]
    assert not [symbol for symbol in WANTED.read_text().split() if symbol.startswith(("_ZTH", "_ZNSt", "_ZSt"))]


def test_libraries_lead_to_the_code(library_folder: Path) -> None:
    for name in build.LIBRARIES:
        code = "import ctypes, sys; ctypes.CDLL(sys.argv[1]).aclrtGetSocName; print('found')"
        run = [sys.executable, "-c", code, str(library_folder / f"lib{name}.so")]
        assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == "found\n"


def test_stubs_follow_the_name() -> None:
    text = render_assembly([], ["_ZTV3abc", "_ZTI3abc", "rtGetSocVersion", "rtKernelLaunch", "aclCreateThing"], set())
    assert ".type rtGetSocVersion,@function" in text
    assert ".type _ZTV3abc,@object" in text and "_ZTI3abc: .zero 256" in text
    assert "\nrtKernelLaunch:\nleaq .Lname4(%rip),%rdi\njmp softnpu_refuse" in text
    assert "aclCreateThing:\nleaq .Lbuffer" in text
    assert "rtGetSocVersion" not in render_assembly([], ["rtGetSocVersion"], {"rtGetSocVersion"})


def test_objects_of_one_byte_are_not_cleared() -> None:
    """Clearing sixteen bytes destroyed what lay behind them: every process aborted at its exit."""
    text = render_assembly([], ["_ZN2ge23OperatorCreatorRegisterC1EPKc", "_ZN2ge5ShapeC1Ev"], set())
    assert "_ZN2ge23OperatorCreatorRegisterC1EPKc:\nxorl %eax,%eax" in text
    assert "_ZN2ge5ShapeC1Ev:\nxorl %ecx,%ecx\nmovq %rcx,0(%rdi)\nmovq %rcx,8(%rdi)" in text


def test_other_machine_types_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(ClusterError, match="this machine is aarch64.*support only x86-64"):
        build.prepare_libraries(tmp_path)


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool: None if tool == "g++" else tool)
    with pytest.raises(ClusterError, match=r"^g\+\+ not found: install g\+\+ and binutils"):
        build.prepare_libraries(tmp_path)
    assert not list(tmp_path.iterdir())


def test_built_libraries_need_no_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / f"{build._make_key()}-{build._read_compiler()}" / build.LIBRARY_FOLDER
    folder.mkdir(parents=True)
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    assert build.prepare_libraries(tmp_path) == folder


def test_unwritable_cache_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ClusterError, match="file/cache: cannot write .*XDG_CACHE_HOME"):
        build.prepare_libraries(file / "cache")


def test_key_follows_the_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = build._make_key()
    sources = tmp_path / "src"
    shutil.copytree(build.SOURCES, sources)
    monkeypatch.setattr(build, "SOURCES", sources)
    assert build._make_key() == before
    with (sources / "items.cc").open("a") as file:
        file.write("// changed\n")
    assert build._make_key() != before


def build_small(folder: str) -> str:
    return str(build.prepare_libraries(Path(folder)))


def test_two_processes_build_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a folder as a killed build leaves it, and a compiler that counts its calls."""
    sources = tmp_path / "src"
    sources.mkdir()
    functions = [f"int softnpu_{name}() {{ return 0; }}" for name in ("prepare", "execute", "refuse")]
    (sources / "calls.cc").write_text(f'extern "C" {{ {" ".join(functions)} }}\n')
    tools = tmp_path / "bin"
    tools.mkdir()
    count = f'case " $* " in *" -c "*) echo x >> {tmp_path}/calls; sleep 1;; esac'
    (tools / "g++").write_text(f'#!/bin/sh\n{count}\nexec {shutil.which("g++")} "$@"\n')
    (tools / "g++").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(build, "SOURCES", sources)
    cache = tmp_path / "cache"
    (cache / f".build-{build._make_key()}-{build._read_compiler()}" / "home").mkdir(parents=True)
    with multiprocessing.get_context("fork").Pool(3) as pool:
        folders = pool.map(build_small, [str(cache)] * 3)
    assert len(set(folders)) == 1 and (Path(folders[0]) / "libascendcl.so").is_file()
    assert (tmp_path / "calls").read_text().count("x") == 1
    assert not list(cache.glob(".build-*"))


def test_a_compiler_error_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sources = tmp_path / "src"
    sources.mkdir()
    (sources / "broken.cc").write_text("int main( {\n")
    monkeypatch.setattr(build, "SOURCES", sources)
    with pytest.raises(
        ClusterError, match=r"^g\+\+ failed to build the emulated CANN libraries: .*broken\.cc:1"
    ) as caught:
        build.prepare_libraries(tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not [path for path in (tmp_path / "cache").iterdir() if not path.name.endswith(".lock")]


def test_switch_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_requested({}) and not is_requested({"ASCEND_CPT_SOFTNPU": "0"})
    assert is_requested({"ASCEND_CPT_SOFTNPU": "1"})
    with pytest.raises(ClusterError, match="ASCEND_CPT_SOFTNPU=yes: set it to 1"):
        is_requested({"ASCEND_CPT_SOFTNPU": "yes"})
    assert prepare({}) is None
    with pytest.raises(
        ClusterError, match=rf"mindspore 2\.8\.0 is installed.*supports only {MINDSPORE_VERSION}; install"
    ):
        check_mindspore("2.8.0")


def test_environment_keeps_the_users_paths(tmp_path: Path) -> None:
    folder = tmp_path / "latest" / "lib64"
    environment = make_environment({"LD_LIBRARY_PATH": "/a", "PYTHONPATH": "/b", "GLOG_v": "1"}, folder)
    assert environment["LD_LIBRARY_PATH"].split(":")[0] == str(folder) == environment[LIBRARIES]
    assert environment["LD_LIBRARY_PATH"].endswith(":/a") and environment["PYTHONPATH"].endswith(":/b")
    assert environment["GLOG_v"] == "1"
    # What decides the form of a graph is left to MindSpore.
    assert "MS_DEV_RUNTIME_CONF" not in environment


def test_a_program_enters_by_starting_again(library_folder: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import ctypes, os, sys\n"
        "from ascend_cpt.softnpu.environment import enter\n"
        "enter()\n"
        "ctypes.CDLL('libascendcl.so').aclrtGetSocName\n"
        "print(os.getpid(), sys.argv[1:], sys.flags.dont_write_bytecode)\n"
    )
    environment = {**os.environ, "ASCEND_CPT_SOFTNPU": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    command = [sys.executable, "-B", str(program), "a b", ""]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.communicate()[0] == f"{process.pid} ['a b', ''] 1\n"


def test_the_scheduler_does_not_enter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASCEND_CPT_SOFTNPU", "1")
    monkeypatch.setenv("MS_ROLE", "MS_SCHED")
    enter()
