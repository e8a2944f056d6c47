#!/usr/bin/env bash
# Fetch the published checkpoints and inverted images into data/, verified and under the names the scripts expect.
#
#   bash scripts/download_data.sh --dry-run                                  list files and sizes, fetch nothing
#   bash scripts/download_data.sh --what models --dataset imagenet --eps eps3
#   bash scripts/download_data.sh --help                                     all choices
#
# Run it again after an interruption: it continues where it stopped and fetches nothing twice.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/env.sh
source scripts/env.sh

ensure_environment
exec python scripts/download_data.py "$@"
