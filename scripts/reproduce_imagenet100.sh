#!/usr/bin/env bash
# The study on ImageNet-100 or its half, ImageNet-50: from the published models (or from training them) to the figures.
#
#   bash scripts/reproduce_imagenet100.sh
#   DATASET=imagenet50 bash scripts/reproduce_imagenet100.sh
#   PUBLISHED=none GPUS="0 1 2 3" bash scripts/reproduce_imagenet100.sh            train and invert here
#   STAGES="compare func figures" EPS="eps0 eps3" bash scripts/reproduce_imagenet100.sh
#
# Needs data/imagenet/imagenet100/{train,val}/<class>/ or LMDB files made of them; to compare published models only, their
# training part as data/imagenet100/train.lmdb (data/README.md).
#
# STAGES names the stages to run, in this order; SKIP those to leave out:
#
#   download    what PUBLISHED names: "models inverted", "models", or none; what it leaves out is made here
#   data        LMDB files from the folders of images; ImageNet-50 from ImageNet-100's
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
configure imagenet100
words="$(study_stages)"
read -ra stages <<<"$words"
run_stages "${stages[@]}"
