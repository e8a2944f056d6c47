#!/usr/bin/env bash
# The study on ImageNet-1k, from the published models (or from training them) to the figures, one job per GPU.
#
#   bash scripts/reproduce_imagenet.sh
#   SKIP="download probes" PRECISION=bf16 bash scripts/reproduce_imagenet.sh
#   PUBLISHED=models EPS="eps0 eps3" bash scripts/reproduce_imagenet.sh            invert images here
#   PUBLISHED=none GPUS="0,1,2,3" LAUNCH="torchrun --standalone --nproc-per-node 4" bash scripts/reproduce_imagenet.sh
#
# Needs the ImageNet images: data/imagenet/ILSVRC/{train,val}/<class>/ or LMDB files made of them; to compare models only,
# the validation images as files (data/README.md).
#
# STAGES names the stages to run, in this order; SKIP those to leave out:
#
#   download    what PUBLISHED names: "models inverted", "models", or none; what it leaves out is made here
#   data        LMDB files from the folders of images
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
configure imagenet
words="$(study_stages)"
read -ra stages <<<"$words"
run_stages "${stages[@]}"
