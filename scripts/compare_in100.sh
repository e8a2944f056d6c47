#!/usr/bin/env bash
# Compare the ImageNet-100 models by representation, on regular and on inverted images; further words as for study.sh.
#
#   bash scripts/compare_in100.sh
#   bash scripts/compare_in100.sh eps=[eps0,eps3] inputs=[standard] compare='{rep: [cka, proc]}'
#
# Reads the checkpoints and what scripts/invert_in100.sh wrote. Writes results/<measure>/<standard|inverted>/…csv and,
# for subgroup_sim.py, representations of the regular images.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/env.sh
source scripts/env.sh
answer_help "$@"
exec bash scripts/study.sh scripts/studies/imagenet100.yaml compare "$@"
