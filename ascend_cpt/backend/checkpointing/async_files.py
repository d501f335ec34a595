"""Files of a checkpoint that MindSpore writes in a thread of its own (`async_save`), while the training goes on.

MindFormers' own AsyncSaveManager takes a thread that failed for one that is done. Here a step counts only when every
file has its final name and is on the disk.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from mindformers.checkpoint.checkpoint import AsyncSaveManager

from ascend_cpt.files import sync_file

THREAD_NAME = "asyn_save_ckpt"  # MindSpore's

_errors: list[BaseException] = []
_tell_by_default = threading.excepthook


class BackgroundFiles:
    """The files of this rank that are being written, from the moment that MindSpore has been asked to."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._see_to_the_end, name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def are_done(self) -> bool:
        """Whether nothing is written any more, well or not."""
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Wait for the end and raise the error that prevented a file."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _see_to_the_end(self) -> None:
        try:
            AsyncSaveManager("thread").check_async_save_alive(wait_finish=True)
            for path in self._files:
                if not path.is_file():
                    raise _errors.pop() if _errors else FileNotFoundError(f"{path}: was not written")
                sync_file(path)
        except BaseException as error:  # raised where the training can be ended by it
            self._error = error


def note_errors() -> None:
    """Remember from now on what ends MindSpore's threads; else it is only printed."""
    _errors.clear()
    threading.excepthook = _note


def _note(arguments: threading.ExceptHookArgs) -> None:
    if arguments.thread is not None and arguments.thread.name == THREAD_NAME and arguments.exc_value is not None:
        _errors.append(arguments.exc_value)
    _tell_by_default(arguments)
