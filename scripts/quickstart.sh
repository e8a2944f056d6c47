#!/usr/bin/env bash
# The whole study on handwritten digits, from nothing: five to six minutes on two cores after the install.
#
#   bash scripts/quickstart.sh            makes .venv when needed, runs what is not done yet, prints the summary
#   bash scripts/quickstart.sh --fresh    removes what earlier runs made of the digits and starts over
#   SMOKE=1 bash scripts/quickstart.sh    a small form in a minute, below smoke/
#   OUT=/some/folder bash scripts/quickstart.sh   puts data/, results/, runs/ and figs/ there
#
# A second run skips everything done; a killed run continues. More: bash scripts/quickstart.sh --help
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/env.sh
source scripts/env.sh

ensure_environment
exec python scripts/quickstart.py "$@"
