# Sourced by the other scripts: makes the virtual environment once and puts it on PATH.
#
#   VENV=.venv         where the environment lives; VENV=none makes none and uses the python on the PATH (conda, a
#                      container, a cluster's module), which must have what requirements.txt lists
#   PYTHON=python3.11  which Python makes it (default: the first of python3.11, python3.12, python3 that is 3.11 or newer)
#
# The environment is made again only when requirements.txt, or the Python that made it, changes.
# shellcheck shell=bash

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${VENV:-$ROOT/.venv}"

# OpenMP's threads spin between parallel regions; beside other busy processes that costs more than it saves.
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-10000}"

die() {
    echo "${0##*/}: error: $*" >&2
    exit 2
}

# The comment a script begins with, which is its help.
print_header() {
    local file="$ROOT/scripts/${0##*/}" # found from every folder, the script having left the one it was started in
    [ -f "$file" ] || file="$0"
    sed -n '2,${/^#/!q;s/^# \{0,1\}//p}' "$file"
}

# Answer -h or --help among the words $@; called before an environment is made.
answer_help() {
    local word
    for word in "$@"; do
        if [ "$word" = -h ] || [ "$word" = --help ]; then
            print_header
            exit 0
        fi
    done
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3}; do
        if command -v "$candidate" >/dev/null &&
            "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die "no Python 3.11 or newer with venv found: install one, or name it with PYTHON=/path/to/python3.11"
}

# What the environment was made from; equal stamps mean it can be used as it is.
environment_stamp() {
    "$1" --version
    cat "$ROOT/requirements.txt"
}

ensure_environment() {
    local python stamp
    if [ "$VENV" = none ]; then
        command -v python >/dev/null || die "VENV=none, but there is no python on the PATH"
        export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
        return
    fi
    if [ -f "$VENV/.stamp" ] && [ -x "$VENV/bin/python" ]; then
        stamp="$(environment_stamp "$VENV/bin/python")"
        if [ "$stamp" = "$(cat "$VENV/.stamp")" ]; then
            use_environment
            return
        fi
    fi
    python="$(find_python)" || exit 2
    local started=$SECONDS
    echo "environment: installing requirements.txt into ${VENV#"$ROOT"/} (about 5 GB, some minutes, once)"
    rm -rf "$VENV"
    "$python" -m venv "$VENV"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$ROOT/requirements.txt" ||
        die "pip could not install requirements.txt (see above)"
    environment_stamp "$VENV/bin/python" >"$VENV/.stamp.new"
    mv "$VENV/.stamp.new" "$VENV/.stamp" # last, so that an interrupted install is done again
    echo "environment: ready after $((SECONDS - started)) s"
    use_environment
}

use_environment() {
    export PATH="$VENV/bin:$PATH"
    export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
}
