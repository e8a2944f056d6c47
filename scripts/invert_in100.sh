#!/usr/bin/env bash
# Invert images through the ImageNet-100 models, every architecture at every radius; further words as for scripts/study.sh.
#
#   bash scripts/invert_in100.sh
#   GPUS="0 1" bash scripts/invert_in100.sh models=[resnet50,vgg16_bn] eps=[eps3]
#   bash scripts/invert_in100.sh -n                                                only print the commands
#
# Writes data/imagenet100/inverted/<model>_<eps>.pt, with a .csv, .png and .json beside each. All jobs invert the same
# images: those of seed_indices.csv and target_indices.csv in that folder, which are drawn where they are missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/env.sh
source scripts/env.sh
answer_help "$@"
exec bash scripts/study.sh scripts/studies/imagenet100.yaml invert published=[models] "$@"
