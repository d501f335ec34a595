#!/usr/bin/env bash
# Runs the tests that need NPUs, on one node with eight NPUs (Atlas 800T A2): the doctor, then the tests marked `npu` (training of
# each family, layouts with tensor and pipeline parallelism, resume, export). Arguments go to pytest.
#
#     bash scripts/ci_atlas.sh [-k qwen3]
#
# CANN's set_env.sh is sourced if needed ($SET_ENV, default /usr/local/Ascend/ascend-toolkit/set_env.sh).
# DRY_RUN=1 writes the configurations to $CI_FOLDER (default output/ci_atlas) and prints every command instead.
set -euo pipefail

# shellcheck source=scripts/python_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/python_env.sh"
cd "$REPO_ROOT"
require_env mindspore mindformers pytest

run() {
    echo "+ $*"
    [[ "${DRY_RUN:-}" == 1 ]] || "$@"
}

SET_ENV="${SET_ENV:-/usr/local/Ascend/ascend-toolkit/set_env.sh}"
if [[ -z "${ASCEND_HOME_PATH:-}" && "${DRY_RUN:-}" != 1 ]]; then
    [[ -r "$SET_ENV" ]] || { echo "error: $SET_ENV is missing; install CANN or set SET_ENV to its set_env.sh" >&2; exit 2; }
    # CANN's script reads variables that may not be set.
    set +u
    # shellcheck disable=SC1090  # on Atlas nodes only
    source "$SET_ENV"
    set -u
fi

run "$PYTHON" tools/doctor.py --local-workers 8
run bash scripts/prepare_sample.sh
run "$PYTHON" -m pytest -m npu -v -rs tests/npu tests/unit/cluster "$@"
if [[ "${DRY_RUN:-}" == 1 ]]; then
    echo "commands that the tests would run:"
    "$PYTHON" tests/npu/cases.py "${CI_DATASET:-data/sample/packed/general_train_text_document}" \
        "${CI_FOLDER:-output/ci_atlas}"
fi
