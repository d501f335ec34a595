"""Serves the report of runs that may still be running; the page in the browser updates itself."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ascend_cpt.errors import CptError
from ascend_cpt.monitor.report.page import Content, load_plotly, render_page, to_json
from ascend_cpt.monitor.report.run_data import RunReader, check_run_folder
from ascend_cpt.monitor.report.write_report import build_content

ADDRESS = "127.0.0.1"
NOTHING: dict[str, Any] = {"runs": [], "charts": [], "maps": []}


class LiveReport:
    """The newest content of a report. The files are read again only after they have changed."""

    def __init__(self, run_dirs: Sequence[Path]) -> None:
        for run_dir in run_dirs:
            check_run_folder(run_dir)
        self._readers = [RunReader(run_dir) for run_dir in run_dirs]
        self._title = run_dirs[0].resolve().name if len(run_dirs) == 1 else f"{len(run_dirs)} runs"
        self._lock = Lock()
        self._files: object = None
        self._number = 0
        self._content = Content(title=self._title, comparison="", sections="", data=NOTHING)
        self._problem = ""

    def read(self) -> tuple[str, Content, str]:
        """Return the version, the content, and what prevents a newer content (or "")."""
        with self._lock:
            found = [reader.find_version() for reader in self._readers]
            if found != self._files:
                self._files = found
                self._number += 1
                try:
                    self._content = build_content([reader.read() for reader in self._readers])
                    self._problem = ""
                except (CptError, OSError) as error:
                    self._problem = str(error)
            return str(self._number), self._content, self._problem

    def render(self) -> str:
        """Return the whole page."""
        version, content, problem = self.read()
        data = {**content.data, "version": version, "problem": problem}
        return render_page(Content(**{**vars(content), "data": data}))

    def find_news(self, version: str) -> str | None:
        """Return what is newer than a version as JSON, or None if nothing is."""
        newest, content, problem = self.read()
        if newest == version:
            return None
        if problem:
            return to_json({"version": newest, "problem": problem})
        return to_json({**vars(content), "data": {**content.data, "version": newest}})


class ReportServer(ThreadingHTTPServer):
    """A server on the loopback interface. `port` 0 chooses a free port."""

    daemon_threads = True

    def __init__(self, report: LiveReport, port: int) -> None:
        self.report = report
        super().__init__((ADDRESS, port), _Handler)

    @property
    def url(self) -> str:
        return f"http://{ADDRESS}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a browser that closes its connection early; print other errors."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: ReportServer
    timeout = 30

    def do_GET(self) -> None:
        """Answer a request."""
        # The name of another host means that a foreign page had its name resolved to this machine (DNS rebinding).
        port = self.server.server_port
        if self.headers.get("Host") not in (f"{ADDRESS}:{port}", f"localhost:{port}"):
            self._answer(HTTPStatus.FORBIDDEN, "text/plain", "unknown host\n")
            return
        target = urlsplit(self.path)
        if target.path == "/":
            self._answer(HTTPStatus.OK, "text/html", self.server.report.render())
        elif target.path == "/data":
            news = self.server.report.find_news(parse_qs(target.query).get("after", [""])[0])
            if news is None:
                self._answer(HTTPStatus.NO_CONTENT, "application/json", "")
            else:
                self._answer(HTTPStatus.OK, "application/json", news)
        else:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", "not found\n")

    def _answer(self, status: HTTPStatus, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        if status != HTTPStatus.NO_CONTENT:
            self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing for each request."""


def open_server(run_dirs: Sequence[Path], port: int) -> ReportServer:
    """Return a server of the report of these runs, which listens from now on.

    Raises:
        CptError: a folder contains no run, plotly is not installed, or the port is taken.
    """
    load_plotly()
    report = LiveReport(run_dirs)
    try:
        return ReportServer(report, port)
    except OSError as error:
        raise CptError(f"--port {port}: cannot listen on {ADDRESS}:{port} ({error.strerror}); choose another") from None
    except OverflowError:
        raise CptError(f"--port {port}: must be between 0 and 65535") from None
