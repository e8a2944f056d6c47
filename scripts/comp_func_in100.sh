#!/usr/bin/env bash
# Compare the ImageNet-100 models by their predictions, on regular and on inverted images, one radius per GPU.
#
#   bash scripts/comp_func_in100.sh
#   FUNCS="dis norm kappa jsd" INPUTS=standard bash scripts/comp_func_in100.sh
#
# Reads the checkpoints and what scripts/invert_in100.sh wrote; uses the outputs that scripts/compare_in100.sh kept.
# Writes results/<measure>/<standard|inverted>/…csv. FLAGS: more words for func.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh
# shellcheck source=scripts/stages.sh
source scripts/stages.sh

start_pipeline "$@"
FUNC_FLAGS="${FUNC_FLAGS:-${FLAGS:-}}"
configure imagenet100
stage_func
