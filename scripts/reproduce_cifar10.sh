#!/usr/bin/env bash
# The study on CIFAR-10, from the published models to the figures; further words as for scripts/study.sh.
#
#   bash scripts/reproduce_cifar10.sh
#   GPUS="0 1" bash scripts/reproduce_cifar10.sh published=[]                      train and invert here
#   bash scripts/reproduce_cifar10.sh train evaluate published=[] eps=[eps1] models=[resnet18,vgg16]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/env.sh
source scripts/env.sh
answer_help "$@"
exec bash scripts/study.sh scripts/studies/cifar10.yaml "$@"
