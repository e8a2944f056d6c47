#!/usr/bin/env bash
# Compare the ImageNet-100 models by representation, on regular and on inverted images, one radius per GPU.
#
#   bash scripts/compare_in100.sh
#   EPS="eps0 eps3" INPUTS=standard bash scripts/compare_in100.sh
#   DATASET=imagenet50 MEASURES="cka proc" FLAGS="-p 10" bash scripts/compare_in100.sh
#
# Reads the checkpoints and what scripts/invert_in100.sh wrote. Writes results/<measure>/<standard|inverted>/…csv and,
# for subgroup_sim.py, representations of the regular images. FLAGS: more words for rep.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh
# shellcheck source=scripts/stages.sh
source scripts/stages.sh

start_pipeline "$@"
COMPARE_FLAGS="${COMPARE_FLAGS:-${FLAGS:-}}"
configure imagenet100
stage_compare
