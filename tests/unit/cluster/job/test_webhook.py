"""Notices over HTTP: formats, retries, that the job never waits, and that the address stays secret."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ascend_cpt.cluster.job import webhook
from ascend_cpt.cluster.job.webhook import WEBHOOK_FILE, Webhook, open_webhook
from ascend_cpt.errors import ConfigError
from tests.receiver import Receiver


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setattr(webhook, "RETRY_DELAYS_S", (0.05, 0.05))
    server = Receiver()
    yield server
    server.close()


def write_address(folder: Path, text: str, mode: int = 0o600) -> dict[str, str]:
    path = folder / "webhook"
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return {WEBHOOK_FILE: str(path)}


def test_notices_arrive_in_order(receiver: Receiver, tmp_path: Path) -> None:
    hook = open_webhook(write_address(tmp_path, receiver.url + "\n"))
    hook.send("start", "run_a", "step 0 of 100")
    hook.send("end", "run_a", "complete")
    hook.close()
    assert [(body["event"], body["job"], body["text"]) for body in receiver.bodies] == [
        ("start", "run_a", "step 0 of 100"),
        ("end", "run_a", "complete"),
    ]
    assert set(receiver.bodies[0]) == {"event", "job", "text", "time", "node"}


@pytest.mark.parametrize(
    ("name", "find_text"),
    [
        ("feishu", lambda body: body["content"]["text"] if body["msg_type"] == "text" else None),
        ("dingtalk", lambda body: body["text"]["content"] if body["msgtype"] == "text" else None),
        ("slack", lambda body: body["text"]),
    ],
)
def test_formats(receiver: Receiver, tmp_path: Path, name: str, find_text: Any) -> None:
    hook = open_webhook(write_address(tmp_path, f"{receiver.url} {name}"))
    hook.send("alarm", "run_a", "loss rises")
    hook.close()
    assert find_text(receiver.bodies[0]).endswith("alarm: loss rises")


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("open.feishu.cn", "feishu"),
        ("oapi.dingtalk.com", "dingtalk"),
        ("hooks.slack.com", "slack"),
        ("example.com", "generic"),
    ],
)
def test_the_format_follows_from_the_host(tmp_path: Path, host: str, name: str) -> None:
    assert open_webhook(write_address(tmp_path, f"https://{host}/x"))._format == name


def test_a_failed_attempt_is_repeated(receiver: Receiver) -> None:
    receiver.statuses = [500, 429, 200]
    warnings: list[str] = []
    hook = Webhook(receiver.url, warn=warnings.append)
    hook.send("end", "run_a", "complete")
    hook.close()
    assert len(receiver.bodies) == 3 and not warnings


@pytest.mark.parametrize(("status", "attempts"), [(500, 3), (404, 1)])
def test_failure_is_one_line_without_the_address(receiver: Receiver, status: int, attempts: int) -> None:
    receiver.statuses = [status]
    warnings: list[str] = []
    hook = Webhook(receiver.url, warn=warnings.append)
    hook.send("end", "run_a", "complete")
    hook.close()
    assert len(receiver.bodies) == attempts
    assert warnings == [f"warning: the notice 'end' was not sent to 127.0.0.1 (HTTP status {status})"]


def test_nobody_listens(receiver: Receiver) -> None:
    receiver.close()
    warnings: list[str] = []
    hook = Webhook(receiver.url, warn=warnings.append)
    hook.send("end", "run_a", "complete")
    hook.close()
    assert warnings == ["warning: the notice 'end' was not sent to 127.0.0.1 (Connection refused)"]


def test_the_caller_never_waits(receiver: Receiver) -> None:
    receiver.delay_s = 0.5
    warnings: list[str] = []
    hook = Webhook(receiver.url, warn=warnings.append)
    start_s = time.monotonic()
    for number in range(webhook.MAX_WAITING + 10):
        hook.send("alarm", "run_a", str(number))
    assert time.monotonic() - start_s < 0.4
    assert warnings and warnings[0] == "warning: the webhook is too slow; dropped the notice 'alarm'"
    start_s = time.monotonic()
    hook.close(timeout_s=0.2)
    assert time.monotonic() - start_s < 0.4


@pytest.mark.parametrize(
    ("text", "mode", "message"),
    [
        ("https://example.com/x", 0o644, "other users can read this file; run chmod 600"),
        ("", 0o600, "must contain one address"),
        ("a b c", 0o600, "must contain one address"),
        ("ftp://example.com", 0o600, "does not start with an http:// or https:// address"),
        ("file:///etc/passwd", 0o600, "does not start with an http:// or https:// address"),
        ("https://[", 0o600, "does not start with an http:// or https:// address"),
        ("https://example.com/secret-token teams", 0o600, "the format 'teams' is unknown"),
    ],
)
def test_unusable_files(tmp_path: Path, text: str, mode: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        open_webhook(write_address(tmp_path, text, mode))
    assert "secret-token" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        open_webhook({WEBHOOK_FILE: str(tmp_path / "none")})


def test_without_the_variable_nothing_is_sent() -> None:
    hook = open_webhook({})
    hook.send("start", "run_a", "x")
    hook.close()
    assert hook._thread is None
