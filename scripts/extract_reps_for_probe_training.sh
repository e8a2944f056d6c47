#!/usr/bin/env bash
# Extract the representations that linear probes are trained on: of all training and validation images, by every
# ImageNet model trained with eps 3, one model per GPU.
#
#   bash scripts/extract_reps_for_probe_training.sh
#   FLAGS="--reps-dtype float16" PRECISION=bf16 bash scripts/extract_reps_for_probe_training.sh
#   DATASET=imagenet100 PROBE_EPS="eps0 eps3" bash scripts/extract_reps_for_probe_training.sh
#
# Writes results/cache/probes/<data set>/<model>_<eps>/{reps,val_reps}.pt, 10 GB a model for ImageNet-1k at 2048 columns
# in float32. FLAGS: more words for train_probe.py. Then train and compare the probes:
#
#   STAGES=probes bash scripts/reproduce_imagenet.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh
# shellcheck source=scripts/stages.sh
source scripts/stages.sh

start_pipeline "$@"
PROBE_FLAGS="${PROBE_FLAGS:-${FLAGS:-}}"
PROBE_EPS="${PROBE_EPS:-${EPS:-eps3}}"
configure imagenet
stage_extract
