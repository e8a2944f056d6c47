#!/usr/bin/env bash
# Extract the representations that linear probes are trained on: of all training and validation images, by every
# ImageNet model trained with eps 3; further words as for scripts/study.sh.
#
#   bash scripts/extract_reps_for_probe_training.sh
#   bash scripts/extract_reps_for_probe_training.sh probe_eps=[eps0,eps3] probes='{reps-dtype: float16}'
#
# Writes results/cache/probes/imagenet/<model>_<eps>/{reps,val_reps}.pt, 10 GB a model at 2048 columns in float32. Then
# bash scripts/reproduce_imagenet.sh probes
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/env.sh
source scripts/env.sh
answer_help "$@"
exec bash scripts/study.sh scripts/studies/imagenet.yaml extract "$@"
