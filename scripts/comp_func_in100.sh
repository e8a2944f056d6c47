#!/usr/bin/env bash
# Compare the ImageNet-100 models by their predictions, on regular and on inverted images; further words as for study.sh.
#
#   bash scripts/comp_func_in100.sh
#   bash scripts/comp_func_in100.sh inputs=[standard] func='{func: [dis, norm, kappa, jsd]}'
#
# Reads the checkpoints and what scripts/invert_in100.sh wrote; writes results/<measure>/<standard|inverted>/…csv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/env.sh
source scripts/env.sh
answer_help "$@"
exec bash scripts/study.sh scripts/studies/imagenet100.yaml func "$@"
