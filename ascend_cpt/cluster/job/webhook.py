"""Sends notices of a job (start, alarm, restart, hang, end) to a chat or a monitoring system, over HTTP.

The address is a secret: it usually contains a token. It is read from a file, and messages name only its host.
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
    """What has happened. `job` names the run, or the command of a launcher."""

    event: str
    """One of `EVENTS`."""
    job: str
    text: str
    time: str
    """UTC, ISO 8601."""
    node: str
    """Host name."""

    def describe(self) -> str:
        """Return the notice as one line for a chat."""
        return f"[ascend_cpt] {self.job} on {self.node}: {self.event}: {self.text}"


class Webhook:
    """Sends notices from a separate thread: the caller never waits, except in `close`.

    A notice is sent at most three times. When sending fails, or too many notices wait, one line is printed and the job
    continues.

    Args:
        url: Where to send them; None sends nothing.
        format: One of `FORMATS`: how the receiver expects the body.
        warn: Prints a line.
    """

    def __init__(self, url: str | None, format: str = "generic", warn: Callable[[str], None] = print) -> None:
        self._url, self._format, self._warn = url, format, warn
        self._waiting: queue.Queue[Notice | None] = queue.Queue(MAX_WAITING)
        self._thread: threading.Thread | None = None

    def send(self, event: str, job: str, text: str) -> None:
        """Send a notice later; does not block."""
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
        """Wait until all notices are sent, at most `timeout_s`."""
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
            except Exception as error:  # whatever it is, the job goes on
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
    """Return an error without the address, which urllib's own messages can contain."""
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
    """Return the webhook that the environment names; without ASCEND_CPT_WEBHOOK_FILE one that sends nothing.

    The file has one line: the address, and after a space the format if it does not follow from the host.

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
