"""The errors that ascend_cpt raises, and how a command turns them into one line and an exit code.

Every user's mistake is a `CptError` whose message says what is wrong, where (file, line, key) and what to do.
Exit codes: 0 good, 2 the user's mistake, 1 everything else.
"""

from __future__ import annotations

import logging
import os
import select
import sys
import traceback
from collections.abc import Callable

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_USER_ERROR = 2

logger = logging.getLogger(__name__)


class CptError(ValueError):
    """The user's mistake, told in one clear line."""

    exit_code = EXIT_USER_ERROR


class ConfigError(CptError):
    """A configuration that cannot be run: unknown key, wrong type, layout that does not divide."""


class DataError(CptError):
    """Input text or a packed dataset that cannot be used as asked."""


class CheckpointError(CptError):
    """A checkpoint that is missing, cut short or does not fit the model."""


class ClusterError(CptError):
    """Launch arguments or nodes that do not fit together."""


def run_command(main: Callable[[], int | None]) -> int:
    """Run a command's `main` and return its exit code.

    A `CptError` is printed as one line (`error: ...`) and gives 2; an interrupt gives 130; a reader of the output who
    has left (`| head`) gives 1; anything else prints its traceback and gives 1. With `ASCEND_CPT_TRACEBACK=1` the
    user's mistakes show their traceback as well.
    """
    try:
        code = main() or EXIT_OK
        sys.stdout.flush()
        return code
    except CptError as error:
        if os.environ.get("ASCEND_CPT_TRACEBACK") == "1":
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return 130
    except Exception as error:
        if not (isinstance(error, BrokenPipeError) and _has_reader_left()):
            traceback.print_exc()
        return EXIT_FAILURE


def _has_reader_left() -> bool:
    """Whether nobody reads the standard output any more; then it goes nowhere, as Python would complain at its end."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


class RunStopped(CptError):
    """A guard or an alarm ended the run, told in one line.

    The exit code is 1: nothing is wrong with the configuration (2), but the run is not complete, so that what a script
    does after a good run must not happen.
    """

    exit_code = EXIT_FAILURE
