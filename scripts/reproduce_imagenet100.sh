#!/usr/bin/env bash
# The study on ImageNet-100, from the published models to the figures; further words as for scripts/study.sh.
#
#   bash scripts/reproduce_imagenet100.sh
#   GPUS="0 1 2 3" bash scripts/reproduce_imagenet100.sh published=[]              train and invert here
#   bash scripts/study.sh scripts/studies/imagenet50.yaml                          the same on its half, ImageNet-50
#
# Needs data/imagenet/imagenet100/{train,val}/<class>/ or LMDB files made of them; to compare published models only, their
# training part as data/imagenet100/train.lmdb (data/README.md).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/env.sh
source scripts/env.sh
answer_help "$@"
exec bash scripts/study.sh scripts/studies/imagenet100.yaml "$@"
