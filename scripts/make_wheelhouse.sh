#!/usr/bin/env bash
# Downloads the packages of requirements/lock/ into a folder, for nodes without network access; the hashes are checked:
#
#     bash scripts/make_wheelhouse.sh [FOLDER [MACHINE [PYTHON [EXTRA ...]]]]
#
# Defaults: FOLDER wheelhouse, MACHINE (aarch64 or x86_64) this one's, PYTHON (3.10 or 3.11) 3.11. EXTRA is ray or torch.
# Install on the node, in the repository:
#
#     PIP_NO_INDEX=1 PIP_FIND_LINKS=wheelhouse bash -c 'source scripts/python_env.sh && ensure_env'
#
# jieba, required by MindFormers, is published as source only; it is built on the node. DRY_RUN=1 prints the commands.
set -euo pipefail

# shellcheck source=scripts/python_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/python_env.sh"

folder="${1:-wheelhouse}" machine="${2:-$(uname -m)}" version="${3:-3.11}"
shift "$(($# < 3 ? $# : 3))"
[[ -r "$REPO_ROOT/requirements/lock/base-$version.txt" ]] || {
    echo "error: no lock files for Python $version; it must be 3.10 or 3.11" >&2
    exit 2
}
[[ "$machine" == aarch64 || "$machine" == x86_64 ]] || {
    echo "error: no wheels for $machine; it must be aarch64 or x86_64" >&2
    exit 2
}
# Only looked up: importing setuptools after pip fails.
"$PYTHON" -c 'import importlib.util as u, sys; sys.exit(None in map(u.find_spec, ["pip", "setuptools"]))' || {
    echo "error: $PYTHON lacks pip or setuptools, needed for jieba; set ASCEND_CPT_PYTHON to a Python that has both" >&2
    exit 2
}

run() {
    echo "+ $*"
    [[ "${DRY_RUN:-}" == 1 ]] || "$@"
}

# Not with pip's default build isolation: it would download an unchecked setuptools to read jieba's metadata.
for name in installer base "$@"; do
    run "$PYTHON" -m pip download --dest "$folder" --no-deps --require-hashes --no-build-isolation --python-version "$version" \
        --platform "manylinux_2_28_$machine" --platform "manylinux_2_17_$machine" --platform "manylinux2014_$machine" \
        -r "$REPO_ROOT/requirements/lock/$name-$version.txt"
done
