#!/usr/bin/env bash
# The study on ImageNet-1k, from the published models to the figures; further words as for scripts/study.sh.
#
#   bash scripts/reproduce_imagenet.sh
#   bash scripts/reproduce_imagenet.sh compare func eps=[eps0,eps3] common={precision: bf16}
#   GPUS="0,1,2,3" bash scripts/reproduce_imagenet.sh published=[] train='{epochs: 90, launch: torchrun --standalone --nproc-per-node 4}'
#
# Needs data/imagenet/ILSVRC/{train,val}/<class>/ or LMDB files made of them; to compare models only, the validation
# images as files (data/README.md).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/env.sh
source scripts/env.sh
answer_help "$@"
exec bash scripts/study.sh scripts/studies/imagenet.yaml "$@"
