#!/usr/bin/env bash
# Checks everything on a machine without NPU: environment, formatting, types, tests (unit first). From a bare clone:
#
#     bash scripts/run_tests.sh                      all of it
#     bash scripts/run_tests.sh tests/unit -k data   arguments go to pytest
#     TEST_WORKERS=4 bash scripts/run_tests.sh       tests run in two processes, or in so many
set -euo pipefail

# shellcheck source=scripts/python_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/python_env.sh"
cd "$REPO_ROOT"

run() {
    echo "+ $*"
    "$@"
}

ensure_env dev
run "$PYTHON" -m ruff check .
run "$PYTHON" -m ruff format --check .
run "$PYTHON" -m mypy
run "$PYTHON" -m pytest --numprocesses "${TEST_WORKERS:-2}" --dist loadgroup --no-loadscope-reorder "$@"
