"""The errors that ascend_cpt raises, and their conversion to a one-line message and an exit code.

Every user error is a `CptError` whose message contains what is wrong, where (file, line, key) and what to do.
Exit codes: 0 success, 2 user error, 1 everything else.
"""

from __future__ import annotations

import logging
import os
import select
import sys
import traceback
from collections.abc import Callable

from ascend_cpt.installed import explain_missing
from ascend_cpt.terminal_text import strip_controls

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_USER_ERROR = 2

logger = logging.getLogger(__name__)


class CptError(ValueError):
    """A user error, described in one line."""

    exit_code = EXIT_USER_ERROR


class ConfigError(CptError):
    """A configuration that cannot be run: unknown key, wrong type, invalid layout."""


class DataError(CptError):
    """Input text or a packed dataset that cannot be used as requested."""


class CheckpointError(CptError):
    """A checkpoint that is missing, truncated or incompatible with the model."""


class ClusterError(CptError):
    """Inconsistent launch arguments or nodes."""


class ExportError(CptError):
    """Exporting a completed run failed. The exit code is 1: the configuration is valid and the run is complete."""

    exit_code = EXIT_FAILURE


def run_command(main: Callable[[], int | None]) -> int:
    """Run a command's `main` and return its exit code.

    A `CptError` or a missing package is printed as one line (`error: ...`) and returns 2. An interrupt returns 130. A
    closed output pipe (`| head`) returns 1. Anything else prints its traceback and returns 1. With
    `ASCEND_CPT_TRACEBACK=1`, user errors also print their traceback.
    """
    try:
        code = main() or EXIT_OK
        sys.stdout.flush()
        return code
    except CptError as error:
        if os.environ.get("ASCEND_CPT_TRACEBACK") == "1":
            traceback.print_exc()
        print(f"error: {strip_controls(str(error))}", file=sys.stderr, flush=True)
        return error.exit_code
    except ModuleNotFoundError as error:
        if not error.name or error.name.partition(".")[0] == "ascend_cpt":
            traceback.print_exc()
            return EXIT_FAILURE
        if os.environ.get("ASCEND_CPT_TRACEBACK") == "1":
            traceback.print_exc()
        print(explain_missing([error.name.partition(".")[0]]), file=sys.stderr, flush=True)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return 130
    except Exception as error:
        if not (isinstance(error, BrokenPipeError) and _is_output_closed()):
            traceback.print_exc()
        return EXIT_FAILURE


def _is_output_closed() -> bool:
    """Return whether stdout's pipe is closed. If so, redirect it to /dev/null so that Python does not fail at exit."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


class RunStopped(CptError):
    """A guard or an alarm stopped the run.

    The exit code is 1: the configuration is valid (not 2), but the run is incomplete, so scripts must not treat it as
    finished.
    """

    exit_code = EXIT_FAILURE
