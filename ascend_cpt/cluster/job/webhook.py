"""Sends a job's notices (start, alarm, restart, hang, end) to a chat or monitoring system over HTTP.

The address is secret, because it usually contains a token. It is read from a file, and messages name only the host.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ascend_cpt.cluster.messages.private_file import read_regular_file
from ascend_cpt.errors import ConfigError

WEBHOOK_FILE = "ASCEND_CPT_WEBHOOK_FILE"
FORMATS = ("generic", "feishu", "dingtalk", "slack")
EVENTS = ("start", "alarm", "restart", "hang", "end")
_FORMAT_OF_HOST = {
    "open.feishu.cn": "feishu",
    "open.larksuite.com": "feishu",
    "oapi.dingtalk.com": "dingtalk",
    "hooks.slack.com": "slack",
}
TIMEOUT_S = 5.0
RETRY_DELAYS_S = (1.0, 4.0)
MAX_WAITING = 100
MAX_FILE_BYTES = 1 << 16
CLOSE_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Notice:
    """An event to report. `job` names the run, or the launcher's command."""

    event: str
    """One of `EVENTS`."""
    job: str
    text: str
    time: str
    """UTC, ISO 8601."""
    node: str
    """Host name."""

    def describe(self) -> str:
        """Return the notice as one line of chat text."""
        return f"[ascend_cpt] {self.job} on {self.node}: {self.event}: {self.text}"


class Webhook:
    """Sends notices from a separate thread, so the caller never waits except in `close`.

    Sending a notice is tried at most three times. If it fails, or too many notices are waiting, one line is printed
    and the job continues.

    Args:
        url: Where to send notices. With None, nothing is sent.
        format: The body format that the receiver expects: one of `FORMATS`.
        warn: Prints a line.
    """

    def __init__(self, url: str | None, format: str = "generic", warn: Callable[[str], None] = print) -> None:
        self._url, self._format, self._warn = url, format, warn
        self._waiting: queue.Queue[Notice | None] = queue.Queue(MAX_WAITING)
        self._thread: threading.Thread | None = None

    def send(self, event: str, job: str, text: str) -> None:
        """Queue a notice for sending, without blocking."""
        if self._url is None:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)
            self._thread.start()
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        try:
            self._waiting.put_nowait(Notice(event=event, job=job, text=text, time=now, node=os.uname().nodename))
        except queue.Full:
            self._warn(f"warning: the webhook is too slow; dropped the notice {event!r}")

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Wait up to `timeout_s` until all notices are sent."""
        if self._thread is None:
            return
        deadline_s = time.monotonic() + timeout_s
        try:
            self._waiting.put(None, timeout=timeout_s)
        except queue.Full:
            return
        self._thread.join(max(0.0, deadline_s - time.monotonic()))
        self._thread = None

    def _run(self) -> None:
        while (notice := self._waiting.get()) is not None:
            self._post(notice)

    def _post(self, notice: Notice) -> None:
        assert self._url is not None
        body = json.dumps(make_body(notice, self._format)).encode()
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"}, method="POST")
        for delay_s in (*RETRY_DELAYS_S, None):
            try:
                with urllib.request.urlopen(request, timeout=TIMEOUT_S):
                    return
            except Exception as error:  # the job continues whatever the error
                if delay_s is None or _is_final(error):
                    self._warn(
                        f"warning: the notice {notice.event!r} was not sent to {urlsplit(self._url).hostname} "
                        f"({_describe(error)})"
                    )
                    return
            time.sleep(delay_s)


NO_WEBHOOK = Webhook(None)
"""Sends nothing."""


def _is_final(error: Exception) -> bool:
    """Return whether the same request would be refused again."""
    return isinstance(error, urllib.error.HTTPError) and 400 <= error.code < 500 and error.code != 429


def _describe(error: Exception) -> str:
    """Describe an error without the address, which urllib's own messages can contain."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP status {error.code}"
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return (reason.strerror if isinstance(reason, OSError) else None) or type(reason).__name__


def make_body(notice: Notice, format: str) -> dict[str, Any]:
    """Return the JSON body of a notice in one of `FORMATS`."""
    text = notice.describe()
    if format == "feishu":
        return {"msg_type": "text", "content": {"text": text}}
    if format == "dingtalk":
        return {"msgtype": "text", "text": {"content": text}}
    if format == "slack":
        return {"text": text}
    return vars(notice)


def open_webhook(environ: Mapping[str, str], warn: Callable[[str], None] = print) -> Webhook:
    """Return the webhook that the environment names, or one that sends nothing without ASCEND_CPT_WEBHOOK_FILE.

    The file has one line: the address followed, if the host does not imply the format, by a space and the format.

    Raises:
        ConfigError: when the file cannot be used.
    """
    if not (name := environ.get(WEBHOOK_FILE)):
        return NO_WEBHOOK
    path = Path(name).expanduser()
    where = f"{WEBHOOK_FILE}={name}"
    try:
        content, status = read_regular_file(path, MAX_FILE_BYTES)
        words = content.decode().split()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise ConfigError(f"{where}: cannot be read ({reason}); write the address of the webhook into it") from None
    if status.st_mode & 0o077:
        raise ConfigError(f"{where}: other users can read this file; run chmod 600 {path}")
    if not 1 <= len(words) <= 2:
        raise ConfigError(f"{where}: must contain one address, optionally followed by a format ({', '.join(FORMATS)})")
    try:
        address = urlsplit(words[0])
        host = address.hostname
    except ValueError:
        host = None
    if host is None or address.scheme not in ("http", "https"):
        raise ConfigError(f"{where}: does not start with an http:// or https:// address")
    chosen = words[1] if len(words) == 2 else _FORMAT_OF_HOST.get(host, "generic")
    if chosen not in FORMATS:
        raise ConfigError(f"{where}: the format {chosen!r} is unknown; choose from {', '.join(FORMATS)}")
    return Webhook(words[0], chosen, warn)
