"""Waits for checkpoint files that MindSpore writes in a background thread (`async_save`) while training continues.

MindFormers' AsyncSaveManager treats a failed thread as finished. Here a step counts as saved only when every file has
its final name and is synced to disk. The thread that waits for them also computes their checksums.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from mindformers.checkpoint.checkpoint import AsyncSaveManager

from ascend_cpt.checkpoint.checksums import checksum_file
from ascend_cpt.files import sync_file

THREAD_NAME = "asyn_save_ckpt"  # MindSpore's name

_errors: list[BaseException] = []
_default_excepthook = threading.excepthook


class BackgroundFiles:
    """This rank's files that MindSpore is still writing. Create it right after the save call."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files
        self._checksums: dict[str, str] = {}
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._wait_and_sync, name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def are_done(self) -> bool:
        """Whether writing has ended, with or without an error."""
        return not self._thread.is_alive()

    def wait(self) -> dict[str, str]:
        """Wait until all files are written and return their checksums. If writing failed, re-raise the error."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._checksums

    def _wait_and_sync(self) -> None:
        try:
            AsyncSaveManager("thread").check_async_save_alive(wait_finish=True)
            for path in self._files:
                if not path.is_file():
                    raise _errors.pop() if _errors else FileNotFoundError(f"{path}: not written")
            self._checksums = sync_and_checksum(self._files)
        except BaseException as error:  # re-raised by `wait` in the main thread
            self._error = error


def sync_and_checksum(files: Sequence[Path]) -> dict[str, str]:
    """Flush files to disk and return checksums by name. Recently written files are read from the page cache."""
    for path in files:
        sync_file(path)
    return {path.name: checksum_file(path) for path in files}


def collect_thread_errors() -> None:
    """Keep exceptions from MindSpore's saving threads, which are otherwise only printed."""
    _errors.clear()
    threading.excepthook = _keep_error


def _keep_error(arguments: threading.ExceptHookArgs) -> None:
    if arguments.thread is not None and arguments.thread.name == THREAD_NAME and arguments.exc_value is not None:
        _errors.append(arguments.exc_value)
    _default_excepthook(arguments)
