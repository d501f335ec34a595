"""Packs a dataset in a separate process, which can fork workers because it has no threads or MindSpore.

    python -m ascend_cpt.data.pack_program PARENT_PID SETTINGS_AS_JSON

Progress goes to standard error. An error is written as one line of JSON to standard output.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ascend_cpt.data.settings import PreprocessSettings
from ascend_cpt.errors import EXIT_USER_ERROR, DataError, run_command
from ascend_cpt.processes import die_with_parent

MODULE = "ascend_cpt.data.pack_program"
_REPOSITORY = Path(__file__).resolve().parents[2]


def run_program(settings: PreprocessSettings) -> None:
    """Pack in a child process, which is killed when the calling thread ends.

    Raises:
        DataError: packing failed, or the process was killed.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(_REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    command = [sys.executable, "-m", MODULE, str(os.getpid()), json.dumps(dataclasses.asdict(settings))]
    ended = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
    if ended.returncode == EXIT_USER_ERROR:
        raise DataError(json.loads(ended.stdout.splitlines()[-1])["error"])
    if ended.returncode:
        raise DataError(
            f"the packing process failed with exit code {ended.returncode} (negative: a signal; its output is "
            "above); start again to continue"
        )


def main() -> int:
    """Pack the dataset described by the settings on the command line."""
    parent, text = sys.argv[1:]
    die_with_parent(int(parent))
    logging.basicConfig(level=logging.INFO, format="raw      %(message)s")
    from ascend_cpt.data.pipeline import preprocess

    try:
        preprocess(_read_settings(json.loads(text)), fork=True)
    except DataError as error:
        sys.stdout.write(json.dumps({"error": str(error)}) + "\n")
        return error.exit_code
    return 0


def _read_settings(record: dict[str, Any]) -> PreprocessSettings:
    """Return the settings from a JSON record, in which tuples are lists."""
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in record.items()
    }
    return PreprocessSettings(**values)


if __name__ == "__main__":
    sys.exit(run_command(main))
