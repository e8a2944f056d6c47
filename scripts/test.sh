#!/usr/bin/env bash
# Style and tests, from nothing: makes .venv when needed, then runs ruff, import-linter and pytest.
#
#   bash scripts/test.sh                 everything but the tests marked slow
#   bash scripts/test.sh --slow          those too
#   bash scripts/test.sh -k procrustes   further words go to pytest
#   TEST_PROCESSES=1 bash scripts/test.sh    test processes (default: one per core, at most 4)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/env.sh
source scripts/env.sh

answer_help "$@"
marker=(-m "not slow")
words=()
for word in "$@"; do
    case "$word" in
        --slow) marker=() ;;
        *) words+=("$word") ;;
    esac
done

ensure_environment
ruff check .
ruff format --check .
lint-imports
cores="$(python -c 'import os; print(min(4, len(os.sched_getaffinity(0))))')"
python -m pytest -n "${TEST_PROCESSES:-$cores}" --dist loadfile "${marker[@]}" "${words[@]}"
