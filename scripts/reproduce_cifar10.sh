#!/usr/bin/env bash
# The study on CIFAR-10, from the published models (or from training them) to the figures, one job per GPU.
#
#   bash scripts/reproduce_cifar10.sh
#   PUBLISHED=none GPUS="0 1" bash scripts/reproduce_cifar10.sh                    train and invert here
#   STAGES="train evaluate" EPS=eps1 MODELS="resnet18 vgg16" bash scripts/reproduce_cifar10.sh
#
# STAGES names the stages to run, in this order; SKIP those to leave out:
#
#   download    what PUBLISHED names: "models inverted", "models", or none; what it leaves out is made here
#   data        fetches CIFAR-10
#   train       the models; only without published ones, or named in STAGES
#   evaluate    clean and robust accuracy; likewise
#   invert      only without published inverted images, or named in STAGES
#   compare     similarity of representations (rep.py)          func       of predictions (func.py)
#   subgroups   where predictions agree and where they differ   probes     linear probes: represent, train, compare
#   figures     figs/ and results/report.html
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh
# shellcheck source=scripts/stages.sh
source scripts/stages.sh

start_pipeline "$@"
configure cifar10
words="$(study_stages)"
read -ra stages <<<"$words"
run_stages "${stages[@]}"
