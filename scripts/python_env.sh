# shellcheck shell=bash
# Chooses the Python of every script here. To be sourced, from any folder:
#
#     source "$(dirname "${BASH_SOURCE[0]}")/python_env.sh"
#
# Sets REPO_ROOT (this repository) and PYTHON, neither exported: $ASCEND_CPT_PYTHON, else .venv of the repository, else
# python3 or python of the PATH. Returns 2 with one line when there is none.
# Defines `ensure_env [extra ...]`, which makes PYTHON an environment that holds the pinned dependencies.

REPO_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# Sets PYTHON.
choose_python() {
    if [[ -n "${ASCEND_CPT_PYTHON:-}" ]]; then
        if ! PYTHON="$(command -v "$ASCEND_CPT_PYTHON")" || [[ ! -x "$PYTHON" ]]; then
            echo "error: ASCEND_CPT_PYTHON=$ASCEND_CPT_PYTHON is not a program; set it to a Python interpreter or unset it" >&2
            return 2
        fi
    elif [[ -x "$REPO_ROOT/.venv/bin/python" ]]; then
        PYTHON="$REPO_ROOT/.venv/bin/python"
    elif ! PYTHON="$(command -v python3 || command -v python)"; then
        echo "error: no python on the PATH; install Python 3.10 or 3.11, or set ASCEND_CPT_PYTHON to one" >&2
        return 2
    fi
}

choose_python || return
