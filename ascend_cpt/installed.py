"""Checks that this Python has the packages that ascend_cpt needs, before anything imports them.

Every program in tools/ and run_cpt.py calls `require` first; the shell scripts run this file. It uses only the standard
library and nothing new in Python 3.10, so that it can report an older Python.
"""

import sys
from importlib.util import find_spec

MIN_VERSION = (3, 10)
LIGHT = ("numpy", "yaml", "psutil", "safetensors", "xxhash", "orjson", "pyarrow", "tokenizers")
"""What the programs import at once, by the names of the modules."""

ADVICE = (
    "run bash scripts/quickstart.sh, which creates an environment for the scripts in .venv, or set ASCEND_CPT_PYTHON "
    "to a Python that has the packages of requirements/base.txt, and run the tools with it"
)


def explain_missing(names: "list[str]") -> str:
    """Return the error line for modules that cannot be imported."""
    return "error: {} lacks {}; {}".format(sys.executable, ", ".join(names), ADVICE)


def require(*names: str) -> None:
    """Print one line and exit with code 2 if one of the modules is not installed, or Python is too old."""
    if sys.version_info < MIN_VERSION:
        version = ".".join(map(str, sys.version_info[:2]))
        sys.stderr.write(f"error: {sys.executable} is Python {version}, but 3.10 or 3.11 is needed; {ADVICE}\n")
        raise SystemExit(2)
    missing = [name for name in names or LIGHT if find_spec(name) is None]
    if missing:
        sys.stderr.write(explain_missing(missing) + "\n")
        raise SystemExit(2)


if __name__ == "__main__":
    require(*LIGHT, *sys.argv[1:])
