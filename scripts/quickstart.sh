#!/usr/bin/env bash
# The whole study on handwritten digits, from nothing: five to six minutes on two cores after the install.
#
#   bash scripts/quickstart.sh            makes .venv when needed, runs what is not done yet, prints the summary
#   bash scripts/quickstart.sh --fresh    removes what earlier runs made of the digits and starts over
#   bash scripts/quickstart.sh --smoke    a small form in a minute, below smoke/ (also SMOKE=1)
#
#   --out FOLDER   where data/, results/, runs/ and figs/ go (default: here, or smoke/; also OUT=FOLDER)
#   --jobs N       processes (default: one per core)
#   --seed N       of training and of what is drawn (default: 0)
#
# A second run skips everything done; a killed run continues. Exit codes: 0 done, 1 a job failed, 2 wrong use.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/env.sh
source scripts/env.sh

answer_help "$@"
ensure_environment
exec python scripts/quickstart.py "$@"
