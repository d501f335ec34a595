#!/usr/bin/env bash
# Downloads every package of requirements/ as wheels into a folder, for nodes without network access:
#
#     bash scripts/make_wheelhouse.sh [FOLDER [MACHINE [PYTHON]]] [-r requirements/ray.txt ...]
#
# Defaults: FOLDER wheelhouse, MACHINE (aarch64 or x86_64) this one's, PYTHON (3.10 or 3.11) 3.11. Install with:
#
#     pip install --no-index --find-links wheelhouse -r requirements/base.txt
#
# jieba, required by MindFormers, is published as source only; its wheel is built here. DRY_RUN=1 prints the commands.
set -euo pipefail

# shellcheck source=scripts/python_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/python_env.sh"

folder=wheelhouse machine="$(uname -m)" version=3.11
[[ "${1--}" == -* ]] || { folder="$1"; shift; }
[[ "${1--}" == -* ]] || { machine="$1"; shift; }
[[ "${1--}" == -* ]] || { version="$1"; shift; }
constraints="$REPO_ROOT/requirements/constraints-$version.txt"
[[ -r "$constraints" ]] || { echo "error: no constraints for Python $version; it must be 3.10 or 3.11" >&2; exit 2; }
[[ "$machine" == aarch64 || "$machine" == x86_64 ]] || {
    echo "error: no wheels for $machine; it must be aarch64 or x86_64" >&2
    exit 2
}

run() {
    echo "+ $*"
    [[ "${DRY_RUN:-}" == 1 ]] || "$@"
}

jieba="$(grep -i '^jieba==' "$constraints")"
run "$PYTHON" -m pip wheel --no-deps --wheel-dir "$folder" "$jieba"
run "$PYTHON" -m pip download --dest "$folder" --find-links "$folder" --only-binary=:all: --python-version "$version" \
    --platform "manylinux_2_28_$machine" --platform "manylinux_2_17_$machine" --platform "manylinux2014_$machine" \
    -c "$constraints" -r "$REPO_ROOT/requirements/base.txt" "$@"
