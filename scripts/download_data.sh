#!/usr/bin/env bash
# Fetch the published checkpoints and inverted images into data/, verified and under the names the scripts expect.
#
#   bash scripts/download_data.sh --dry-run                                  list files and sizes, fetch nothing
#   bash scripts/download_data.sh --what models --dataset imagenet --eps eps3
#
#   --what, --dataset, --eps, --model-names, --source, --records   choose among them, each with one word or several:
#                  models inverted; imagenet imagenet100 imagenet50 cifar10; eps0 eps025 eps05 eps1 eps3; architectures;
#                  huggingface zenodo; numbers of Zenodo records (default: all)
#   --root DIR     where the data go (default: data)
#   --dry-run      list files and sizes, fetch nothing
#   --overwrite    replace files that differ from the published ones
#
# Run it again after an interruption: it continues where it stopped and fetches nothing twice.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/env.sh
source scripts/env.sh

answer_help "$@"
ensure_environment
exec python scripts/download_data.py "$@"
