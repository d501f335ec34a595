# shellcheck shell=bash
# Selects the Python for all scripts. Source it, from any folder:
#
#     source "$(dirname "${BASH_SOURCE[0]}")/python_env.sh" || exit
#
# Sets REPO_ROOT (this repository) and PYTHON, neither exported: $ASCEND_CPT_PYTHON, else .venv of the repository, else
# python3 or python on the PATH. Returns 2 with an error line if there is none.
# Defines `ensure_env [extra ...]`, which makes PYTHON an environment with the pinned dependencies, and `require_env`,
# which checks that it has them.

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

# Prints a Python 3.10 or 3.11 that can make virtual environments. Inactive pyenv shims fail the check.
find_base_python() {
    local candidate
    for candidate in python3.11 python3.10 python3 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[01].*/bin/python; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] not in [(3, 10), (3, 11)])' \
            >/dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
    done
    echo "error: no Python 3.10 or 3.11 with venv found (mindspore 2.9.0 has no wheels for others); install one (Debian:" \
        "apt install python3.11 python3.11-venv; or pyenv install 3.11), or set ASCEND_CPT_PYTHON" >&2
    return 2
}

# require_env [module ...]: returns 2 with an error line if the packages or one of these modules are missing. Takes
# about 0.1 s.
require_env() {
    "$PYTHON" "$REPO_ROOT/ascend_cpt/installed.py" "$@"
}

# Prints one line for each pinned package that is missing or has another version; returns 2 if any is missing.
check_packages() {
    PYTHONPATH="$REPO_ROOT" "$PYTHON" -m ascend_cpt.cluster.node.packages "$@"
}

# pip_install VENV_PYTHON ARGUMENT...: pip install of lock files, tried three times. The locks are complete, so --no-deps: the
# metadata of MindFormers would not allow requirements/overrides.txt. Only files with a hash in the lock are accepted.
pip_install() {
    local python="$1" try
    shift
    for try in 1 2 3; do
        "$python" -m pip install --quiet --disable-pip-version-check --retries 10 --no-deps --require-hashes "$@" && return
        [[ $try == 3 ]] || { echo "pip failed; trying again in 10 s" >&2; sleep 10; }
    done
    echo "error: pip could not install the requirements (see above); check the network or your pip index and run again" >&2
    return 1
}

# install_packages VENV_PYTHON NAME...: installs requirements/lock/NAME-<version of Python>.txt. pip and setuptools come first:
# the package without a wheel (jieba) is built with them, not with an unchecked download.
install_packages() {
    local python="$1" version arguments=() name
    shift
    version="$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
    for name in "$@"; do arguments+=(-r "$REPO_ROOT/requirements/lock/$name-$version.txt"); done
    pip_install "$python" -r "$REPO_ROOT/requirements/lock/installer-$version.txt" \
        && pip_install "$python" --no-build-isolation "${arguments[@]}"
}

# ensure_env [dev|ray|torch ...]: without ASCEND_CPT_PYTHON, creates or updates .venv; with it, only checks.
ensure_env() {
    local names=(base "$@") venv="$REPO_ROOT/.venv" base_python stamp wanted name
    if [[ -n "${ASCEND_CPT_PYTHON:-}" ]]; then
        choose_python && check_packages "${names[@]}"
        return
    fi
    if ! "$venv/bin/python" -c 'import sys, pip; sys.exit(sys.version_info[:2] not in [(3, 10), (3, 11)])' 2>/dev/null; then
        base_python="$(find_base_python)" || return
        echo "environment: creating $venv with $base_python"
        "$base_python" -m venv --clear "$venv" || return
    fi
    # The stamp is written last, so an interrupted installation has none. It contains the hash of the requirements.
    stamp="$venv/installed-$(IFS=-; echo "${names[*]}").sha256"
    wanted="$(for name in "${names[@]}"; do cat "$REPO_ROOT/requirements/$name.txt" || exit; done \
        | cat - "$REPO_ROOT"/requirements/lock/*.txt | sha256sum)" || return
    if [[ "$(cat "$stamp" 2>/dev/null)" == "$wanted" ]]; then
        echo "environment: $venv matches the pinned versions"
    else
        echo "environment: installing ${names[*]} into $venv (several minutes the first time)"
        install_packages "$venv/bin/python" "${names[@]}" || return
        PYTHON="$venv/bin/python" check_packages "${names[@]}" || return
        echo "$wanted" >"$stamp.tmp" && mv "$stamp.tmp" "$stamp"
    fi
    choose_python
}

choose_python || return
