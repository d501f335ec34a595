#!/usr/bin/env bash
# Runs all checks that need no NPU: environment, linting, types, tests (unit tests first). From a fresh clone:
#
#     bash scripts/run_tests.sh                      all checks
#     bash scripts/run_tests.sh tests/unit -k data   arguments go to pytest
#     TEST_WORKERS=4 bash scripts/run_tests.sh       number of test processes (default 2)
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
