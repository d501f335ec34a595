"""A run that stops itself."""

from __future__ import annotations

from ascend_cpt.errors import EXIT_FAILURE, CptError


class RunStopped(CptError):
    """A guard or an alarm ended the run, told in one line.

    The exit code is 1: nothing is wrong with the configuration (2), but the run is not complete, so that what a script
    does after a good run must not happen.
    """

    exit_code = EXIT_FAILURE
