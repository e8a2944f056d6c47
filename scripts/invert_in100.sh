#!/usr/bin/env bash
# Invert images through the ImageNet-100 models: every architecture at every radius, one job per GPU.
#
#   bash scripts/invert_in100.sh
#   MODELS="resnet50 vgg16_bn" EPS=eps3 GPUS="0 1" bash scripts/invert_in100.sh
#   DATASET=imagenet50 FLAGS="--uint8 --precision bf16" bash scripts/invert_in100.sh
#   DRY_RUN=1 bash scripts/invert_in100.sh      only print the commands
#
# Writes data/imagenet100/inverted/<model>_<eps>.pt, with a .csv, .png and .json beside each. FLAGS: more words for
# inversion.py. All jobs invert the same images: those of seed_indices.csv and target_indices.csv in that folder, which
# are drawn where they are missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh
# shellcheck source=scripts/stages.sh
source scripts/stages.sh

start_pipeline "$@"
INVERT_FLAGS="${INVERT_FLAGS:-${FLAGS:-}}"
configure imagenet100
stage_invert
