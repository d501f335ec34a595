"""tools/report.py --serve: a real server on the loopback interface, asked over HTTP."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ascend_cpt.monitor.record import ValidationRecord
from ascend_cpt.monitor.sinks import JsonlSink
from tests.ports import find_free_port
from tests.unit.monitor.report.test_report import read_data, write_run
from tests.unit.monitor.test_sinks import make_step


@dataclass(frozen=True, kw_only=True)
class Served:
    """A running server."""

    process: subprocess.Popen[str]
    port: int

    def get(self, path: str, *, host: str | None = None, method: str = "GET") -> tuple[int, str, Any]:
        """Return the status, body and headers of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, headers={"Host": host if host is not None else f"127.0.0.1:{self.port}"})
        answer = connection.getresponse()
        body = answer.read().decode()
        connection.close()
        return answer.status, body, answer.headers

    def stop(self) -> tuple[int, str]:
        """Press Ctrl-C and return the exit code and the errors."""
        self.process.send_signal(signal.SIGINT)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


@pytest.fixture
def serve(repo_root: Path) -> Iterator[Callable[..., Served]]:
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: object) -> Served:
        process = subprocess.Popen(
            [sys.executable, "tools/report.py", *map(str, arguments), "--serve"],
            cwd=repo_root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        processes.append(process)
        assert process.stdout
        line = process.stdout.readline()
        match = re.fullmatch(r"serving on http://127\.0\.0\.1:(\d+)/ \(.*\); Ctrl-C ends it\n", line)
        if match is None:
            process.kill()
            pytest.fail(line + process.communicate()[1])
        return Served(process=process, port=int(match[1]))

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_page_follows_a_run_and_ctrl_c_ends_with_0(tmp_path: Path, serve: Callable[..., Served]) -> None:
    run = write_run(tmp_path / "one")
    port = find_free_port()
    served = serve(run, "--port", port)
    assert served.port == port
    status, page, headers = served.get("/")
    version = read_data(page)["version"]
    assert status == 200 and "charset=utf-8" in headers["Content-Type"] and headers["Cache-Control"] == "no-store"
    assert headers["X-Frame-Options"] == "DENY" and headers["X-Content-Type-Options"] == "nosniff"
    assert "Access-Control-Allow-Origin" not in headers
    assert served.get(f"/data?after={version}")[:2] == (204, "")
    sink = JsonlSink(run / "metrics.jsonl", 20)
    sink.write(make_step(21, loss=1.25))
    sink.close()
    status, text, _ = served.get(f"/data?after={version}")
    news = json.loads(text)
    assert status == 200 and news["data"]["version"] != version and news["title"] == "one"
    assert news["data"]["charts"][0]["lines"][0]["y"][-1] == 1.25 and "21 of 20" in news["sections"]
    assert served.get(f"/data?after={news['data']['version']}")[0] == 204
    assert not (run / "report.html").exists(), "nothing is written"
    assert served.stop() == (0, "")


@pytest.mark.parametrize(
    "host", ["attacker.example", "attacker.example:{port}", "127.0.0.1", "127.0.0.1:1", "", "localhost:{port}.example"]
)
def test_other_hosts_are_refused(tmp_path: Path, serve: Callable[..., Served], host: str) -> None:
    served = serve(write_run(tmp_path / "one"))
    for path in ("/", "/data?after=0"):
        status, body, _ = served.get(path, host=host.format(port=served.port))
        assert (status, body) == (403, "unknown host\n")
    assert served.get("/", host=f"localhost:{served.port}")[0] == 200


def test_other_paths_and_methods(tmp_path: Path, serve: Callable[..., Served]) -> None:
    served = serve(write_run(tmp_path / "one"))
    for path in ("/metrics.jsonl", "/../one/run.json", "/..%2frun.json", "/data/", "/favicon.ico"):
        assert served.get(path)[0] == 404, path
    assert served.get("/", method="POST")[0] == 501
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(b"\x00\xff not http\r\n\r\n")
        connection.recv(1000)
    assert served.get("/")[0] == 200 and served.stop() == (0, "")


def test_only_loopback_listens(tmp_path: Path, serve: Callable[..., Served]) -> None:
    served = serve(write_run(tmp_path / "one"))
    listening = Path("/proc/net/tcp").read_text(encoding="ascii") + Path("/proc/net/tcp6").read_text(encoding="ascii")
    addresses = {line.split()[1] for line in listening.splitlines() if line.split()[1].endswith(f":{served.port:04X}")}
    assert addresses == {f"0100007F:{served.port:04X}"}


def test_run_that_has_no_steps_yet(tmp_path: Path, serve: Callable[..., Served]) -> None:
    sink = JsonlSink(tmp_path / "metrics.jsonl", 0)
    sink.write(ValidationRecord(step=0, name="held", loss=2.0, num_labels=9))
    served = serve(tmp_path)
    data = read_data(served.get("/")[1])
    assert data["runs"] == [] and "has no steps yet" in data["problem"]
    sink.write(make_step(1))
    sink.close()
    news = json.loads(served.get(f"/data?after={data['version']}")[1])
    assert [run["name"] for run in news["data"]["runs"]] == [tmp_path.name]


def test_run_that_becomes_damaged_keeps_the_last_state(tmp_path: Path, serve: Callable[..., Served]) -> None:
    run = write_run(tmp_path / "one")
    served = serve(run)
    data = read_data(served.get("/")[1])
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write("{}\n")
    news = json.loads(served.get(f"/data?after={data['version']}")[1])
    assert "line 25 is not a valid record" in news["problem"] and "data" not in news
    data = read_data(served.get("/")[1])
    assert "line 25" in data["problem"] and data["runs"][0]["steps"][-1] == 20


@contextmanager
def occupied_port() -> Iterator[int]:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def test_wrong_arguments_give_a_one_line_error(tmp_path: Path, repo_root: Path) -> None:
    run = write_run(tmp_path / "one")

    def fail(*arguments: object) -> str:
        command = [sys.executable, "tools/report.py", *map(str, arguments)]
        result = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, timeout=60, check=False)
        assert result.returncode == 2, result
        return result.stderr.splitlines()[-1]

    with occupied_port() as port:
        message = fail(run, "--serve", "--port", port)
        assert message.startswith(f"error: --port {port}: cannot listen on 127.0.0.1:{port} (Address already in use)")
    assert "must be between 0 and 65535" in fail(run, "--serve", "--port", 70000)
    assert "--port needs --serve" in fail(run, "--port", 5000)
    assert "--output cannot be combined with --serve" in fail(run, "--serve", "--output", "x.html")
    assert "not a run folder" in fail(tmp_path / "missing", "--serve")


def test_many_requests_at_once(tmp_path: Path, serve: Callable[..., Served]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    served = serve(write_run(tmp_path / "one"))
    start = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: served.get("/data?after=none"), range(24)))
    assert {status for status, _, _ in answers} == {200} and len({text for _, text, _ in answers}) == 1
    assert time.monotonic() - start < 30
