"""The launcher with real processes under the real msrun. Most of the scripts do not import MindSpore."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

REPO_ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = REPO_ROOT / "scripts" / "msrun_launcher.sh"
TIMEOUT_S = 100

# Prints its arguments, then performs the action in the first on the rank in the second.
ACTOR = """\
import json, os, signal, subprocess, sys, time
if os.environ.get("MS_ROLE") == "MS_SCHED":
    time.sleep(0.2)
    sys.exit(0)
rank = int(os.environ["RANK_ID"])
print("worker", rank, json.dumps(sys.argv[1:]), flush=True)
print("[WARNING] ME(1:2,MainProcess):2026-11-21-08:42:53.931.000 [a.py:1] flood", flush=True)
action, actor = (sys.argv[1:] + ["end", "-1"])[:2]
if action == "end":
    sys.exit(0)
if rank == int(actor):
    time.sleep(0.3)
    if action == "raise":
        raise RuntimeError("bang")
    if action == "mistake":
        print("error: x.yaml:3: unknown key", file=sys.stderr)
        sys.exit(2)
    if action == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if action == "at_once":
        os._exit(5)
if action == "orphan":
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=True)
if action == "save":
    def save(number, frame):
        print("saved", number, flush=True)
        sys.exit(0)
    signal.signal(signal.SIGTERM, save)
    print("ready", flush=True)
if action == "ignore":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("ready", flush=True)
if action != "orphan":
    time.sleep(300)
"""

# MindSpore may crash while a process of a job shuts down, so the exit code is recorded before.
REDUCER = """\
import os, sys, time
import mindspore
from mindspore.communication import get_group_size, get_rank, init
from ascend_cpt.cluster.job.launcher_files import run_worker

def main():
    mindspore.set_device("CPU")
    init()
    total = mindspore.ops.AllReduce()(mindspore.Tensor([float(get_rank() + 1)]))
    mindspore.runtime.synchronize()
    print("total", get_rank(), get_group_size(), total.asnumpy().tolist(), flush=True)
    while "END_FILE" in os.environ and not os.path.exists(os.environ["END_FILE"]):
        time.sleep(0.1)

sys.exit(run_worker(main))
"""

Launch = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[str]]

needs_msrun = pytest.mark.skipif(
    not (Path(sys.executable).parent / "msrun").exists(), reason="MindSpore is not installed beside this Python"
)
pytestmark = needs_msrun


@pytest.fixture
def environ(clean_environ: dict[str, str], free_port: int) -> dict[str, str]:
    return clean_environ | {"ASCEND_CPT_PYTHON": sys.executable, "MASTER_PORT": str(free_port)}


@pytest.fixture
def launch(tmp_path: Path, environ: dict[str, str]) -> Launch:
    (tmp_path / "actor.py").write_text(ACTOR)
    (tmp_path / "reducer.py").write_text(REDUCER)

    def run(*arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(LAUNCHER), *arguments]
        result = subprocess.run(
            command, cwd=tmp_path, env=environ | extra, text=True, capture_output=True, timeout=TIMEOUT_S, check=False
        )
        assert not processes_of(tmp_path), result.stdout + result.stderr
        return result

    return run


def processes_of(folder: Path) -> list[psutil.Process]:
    """Return the processes that run in `folder`: leftovers of a launch."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a launch in the background, its output in out.txt; processes still running after the test are killed."""
    started = []

    def run(folder: Path, environ: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
        command = ["bash", str(LAUNCHER), *arguments]
        with (folder / "out.txt").open("w") as output:
            process = subprocess.Popen(
                command, cwd=folder, env=environ, stdout=output, stderr=subprocess.STDOUT, text=True
            )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()


def wait_for(condition: Callable[[], object], limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def accepts(port: int) -> bool:
    """Return whether a process listens on a local port."""
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


def test_two_workers_connect(launch: Launch, tmp_path: Path) -> None:
    result = launch("reducer.py", "2")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "total 0 2 [3.0]\n"
    assert "total 1 2 [3.0]" in (tmp_path / "output/msrun_log/worker_1.log").read_text()


def test_two_nodes_connect_from_different_folders(
    start: Start, tmp_path: Path, environ: dict[str, str], free_port: int
) -> None:
    nodes = []
    for rank in ("1", "0"):  # node 1 first: it must not take the port of node 0
        folder = tmp_path / rank
        folder.mkdir()
        (folder / "reducer.py").write_text(REDUCER)
        allowed = environ | {"ASCEND_CPT_ALLOW_LOCAL_MASTER": "1"}
        arguments = ("reducer.py", "2", "1", "127.0.0.1", str(free_port), rank, "logs", "False", "60")
        nodes.append(start(folder, allowed, *arguments))
        time.sleep(1)
    codes = [node.wait(TIMEOUT_S) for node in nodes]
    texts = [(tmp_path / rank / "out.txt").read_text() for rank in ("1", "0")]
    assert codes == [0, 0], texts
    assert [text.splitlines()[0] for text in texts] == ["total 1 2 [3.0]", "total 0 2 [3.0]"]
    assert (tmp_path / "1/logs/node_1/worker_1.log").exists()


def test_the_same_node_rank_twice_is_refused_across_machines(
    start: Start, tmp_path: Path, environ: dict[str, str], free_port: int
) -> None:
    nodes = {}
    end = tmp_path / "end"
    for name, rank in (("a", "0"), ("b", "1"), ("c", "1")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "reducer.py").write_text(REDUCER)
        # A different lock folder simulates a different machine.
        own = environ | {"ASCEND_CPT_ALLOW_LOCAL_MASTER": "1", "TMPDIR": str(folder), "END_FILE": str(end)}
        nodes[name] = start(folder, own, "reducer.py", "2", "1", "127.0.0.1", str(free_port), rank)
    wait_for(lambda: nodes["b"].poll() is not None or nodes["c"].poll() is not None, TIMEOUT_S)
    refused, accepted = ("b", "c") if nodes["b"].poll() is not None else ("c", "b")
    end.touch()
    codes = {name: node.wait(TIMEOUT_S) for name, node in nodes.items()}
    texts = {name: (tmp_path / name / "out.txt").read_text() for name in nodes}
    assert codes == {"a": 0, accepted: 0, refused: 2}, texts
    message = f"error: NODE_RANK 1 is taken: another node registered the same workers at 127.0.0.1:{free_port}"
    assert message in texts[refused]


def test_the_same_node_rank_twice_is_refused_on_one_machine(
    start: Start, tmp_path: Path, launch: Launch, environ: dict[str, str], free_port: int
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "actor.py").write_text(ACTOR)
    allowed = environ | {"ASCEND_CPT_ALLOW_LOCAL_MASTER": "1"}
    arguments = ("actor.py end", "2", "1", "127.0.0.1", str(free_port), "0")
    first = start(here, allowed, *arguments)
    try:
        wait_for(lambda: accepts(free_port + 2))
        result = launch(*arguments, ASCEND_CPT_ALLOW_LOCAL_MASTER="1")
    finally:
        first.terminate()
        first.wait(TIMEOUT_S)
    assert result.returncode == 2
    assert f"error: NODE_RANK 0 of the job at 127.0.0.1:{free_port} is already taken" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("num_workers", ["1", "2"])
def test_arguments_survive(launch: Launch, num_workers: str) -> None:
    result = launch("""python actor.py end 'a b' "it's" --x='"q"' '' '*' '$HOME' -- é""", num_workers)
    assert result.returncode == 0, result.stderr
    assert result.stdout == """worker 0 ["end", "a b", "it's", "--x=\\"q\\"", "", "*", "$HOME", "--", "\\u00e9"]\n"""


@pytest.mark.parametrize(
    ("action", "code", "first_line", "last_line"),
    [
        ("raise", 1, "RuntimeError: bang", "worker {rank} failed with exit code 1; its log: {log}"),
        ("mistake", 2, "error: x.yaml:3: unknown key", "worker {rank} failed with exit code 2; its log: {log}"),
        ("crash", 1, "worker {rank}", "worker {rank} was killed by SIGSEGV; its log: {log}"),
        ("at_once", 1, "worker {rank}", "worker {rank} failed with exit code 5; its log: {log}"),
    ],
)
@pytest.mark.parametrize(("num_workers", "rank"), [("1", 0), ("3", 0), ("3", 2)])
def test_the_first_failure_is_reported(
    launch: Launch, action: str, code: int, first_line: str, last_line: str, num_workers: str, rank: int
) -> None:
    begin = time.monotonic()
    result = launch(f"actor.py {action} {rank}", num_workers)
    lines = result.stderr.splitlines()
    assert result.returncode == code
    assert lines[0].startswith(first_line.format(rank=rank))
    assert lines[-1] == last_line.format(rank=rank, log=f"output/msrun_log/worker_{rank}.log")
    assert "flood" not in result.stdout
    assert time.monotonic() - begin < 30


def test_an_error_is_not_printed_twice_on_one_terminal(
    start: Start, tmp_path: Path, launch: Launch, environ: dict[str, str]
) -> None:
    assert start(tmp_path, environ, "actor.py mistake 0", "1").wait(TIMEOUT_S) == 2
    assert (tmp_path / "out.txt").read_text().count("error: x.yaml:3: unknown key") == 1


@pytest.mark.parametrize(("num_workers", "rank"), [("1", 0), ("2", 1)])
@pytest.mark.parametrize("code", [0, 2])
def test_a_crash_after_the_end_of_the_work_is_a_warning(
    launch: Launch, tmp_path: Path, num_workers: str, rank: int, code: int
) -> None:
    # As MindSpore crashes at times: in a function that Python calls when it exits.
    crash = f"os.environ.get('RANK_ID') == '{rank}' and 'run_cpt' in sys.argv[0] and os.kill(os.getpid(), 11)"
    (tmp_path / "sitecustomize.py").write_text(f"import atexit, os, sys\natexit.register(lambda: {crash})\n")
    command = f"{REPO_ROOT}/run_cpt.py " + ("--help" if code == 0 else "--config absent.yaml")
    result = launch(command, num_workers, PYTHONPATH=str(tmp_path))
    assert result.returncode == code, result.stderr
    warning = (
        f"warning: worker {rank} was killed by SIGSEGV while shutting down, after its work had ended (exit "
        f"code {code}); its log: output/msrun_log/worker_{rank}.log\n"
    )
    assert result.stderr.count(warning) == 1
    assert ("absent.yaml" in result.stderr) == (code == 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_forwarded(
    start: Start, tmp_path: Path, launch: Launch, environ: dict[str, str], number: signal.Signals
) -> None:
    process = start(tmp_path, environ, "actor.py save 0", "2")
    wait_for(lambda: "ready" in (tmp_path / "out.txt").read_text())
    process.send_signal(number)
    assert process.wait(TIMEOUT_S) == 128 + number
    text = (tmp_path / "output/msrun_log/worker_1.log").read_text()
    assert ("saved 15" if number == signal.SIGTERM else "KeyboardInterrupt") in text
    assert not processes_of(tmp_path)


def test_nohup_keeps_the_job(tmp_path: Path, launch: Launch, environ: dict[str, str]) -> None:
    with (tmp_path / "out.txt").open("w") as output:
        command = ["nohup", "bash", str(LAUNCHER), "actor.py save 0", "1"]
        process = subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=output, stderr=subprocess.STDOUT)
    wait_for(lambda: "ready" in (tmp_path / "out.txt").read_text())
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.terminate()
    assert process.wait(TIMEOUT_S) == 128 + signal.SIGTERM


def test_a_second_signal_kills(start: Start, tmp_path: Path, launch: Launch, environ: dict[str, str]) -> None:
    process = start(tmp_path, environ, "actor.py ignore 0", "2")
    wait_for(lambda: "ready" in (tmp_path / "out.txt").read_text())
    process.terminate()
    wait_for(lambda: "SIGTERM: stopping the workers" in (tmp_path / "out.txt").read_text())
    begin = time.monotonic()
    process.terminate()
    assert process.wait(TIMEOUT_S) == 128 + signal.SIGTERM
    assert time.monotonic() - begin < 5
    assert not processes_of(tmp_path)


@pytest.mark.parametrize("num_workers", ["1", "2"])
def test_workers_die_with_a_killed_launcher(
    start: Start, tmp_path: Path, launch: Launch, environ: dict[str, str], num_workers: str
) -> None:
    process = start(tmp_path, environ, "actor.py ignore 0", num_workers)
    wait_for(lambda: "ready" in (tmp_path / "out.txt").read_text())
    process.kill()
    process.wait(TIMEOUT_S)
    wait_for(lambda: not processes_of(tmp_path), limit_s=10)


def test_orphans_of_workers_are_killed(launch: Launch) -> None:
    assert launch("actor.py orphan -1", "2").returncode == 0  # `launch` checks for leftover processes


def test_dry_run_starts_nothing(launch: Launch, tmp_path: Path) -> None:
    result = launch("actor.py 'a b'", "64", "8", "10.0.0.1", "8118", "3", DRY_RUN="1")
    assert result.returncode == 0
    assert (
        "-m mindspore.parallel.cluster.run --worker_num=64 --local_worker_num=8 --master_addr=10.0.0.1" in result.stdout
    )
    assert result.stdout.endswith("actor.py 'a b'\n")
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "CMD is missing"),
        (("actor.py", "8", "8", "127.0.0.1", "8118"), "NODE_RANK is missing"),
        (("actor.py", "8", "4", "localhost", "8118", "0"), "MASTER_ADDR localhost is a loopback address"),
        (("absent.py", "2"), "script not found: absent.py"),
    ],
)
def test_a_bad_launch_is_one_line(launch: Launch, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    result = launch(*arguments)
    assert result.returncode == 2
    assert f"error: {message}" in result.stderr.splitlines()[-1]
    assert result.stdout == ""
    assert not (tmp_path / "output").exists()


def test_a_port_in_use_is_one_line(launch: Launch, environ: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", int(environ["MASTER_PORT"]))):
        result = launch("actor.py", "2")
    assert result.returncode == 2
    place = f"error: MASTER_PORT {environ['MASTER_PORT']} is in use on 127.0.0.1 by process {os.getpid()} ("
    assert result.stderr.startswith(place)
    assert result.stderr.endswith("); choose another\n")
    assert result.stderr.count("\n") == 1


def test_the_launcher_works_from_a_path_with_spaces(tmp_path: Path, environ: dict[str, str]) -> None:
    copy = tmp_path / "a copy"
    for part in (
        "scripts/msrun_launcher.sh",
        "scripts/python_env.sh",
        "ascend_cpt/__init__.py",
        "ascend_cpt/errors.py",
        "ascend_cpt/files.py",
        "ascend_cpt/installed.py",
        "ascend_cpt/locks.py",
        "ascend_cpt/terminal_text.py",
    ):
        (copy / part).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPO_ROOT / part, copy / part)
    shutil.copytree(REPO_ROOT / "ascend_cpt/cluster", copy / "ascend_cpt/cluster")
    (copy / "actor.py").write_text(ACTOR)
    command = ["bash", "scripts/msrun_launcher.sh", "actor.py end", "2"]
    result = subprocess.run(
        command, cwd=copy, env=environ, text=True, capture_output=True, timeout=TIMEOUT_S, check=False
    )
    assert (result.returncode, result.stdout) == (0, 'worker 0 ["end"]\n'), result.stderr
    assert os.listdir(copy / "output/msrun_log")
