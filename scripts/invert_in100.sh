#!/usr/bin/env bash
# Invert images through the ImageNet-100 models: every architecture at every radius, one job per GPU.
#
#   bash scripts/invert_in100.sh
#   MODELS="resnet50 vgg16_bn" EPS=eps3 GPUS="0 1" bash scripts/invert_in100.sh
#   DRY_RUN=1 bash scripts/invert_in100.sh      only print the commands
#
# What is done is skipped, what was stopped in the middle continues. A failed job does not stop the others; the exit
# code is then 1.
#
#   DATASET=imagenet100                 seeds and targets, and what the models were trained on
#   MODELS="resnet50 wide_resnet50_2 densenet161 vgg16_bn"
#   EPS="eps0 eps025 eps05 eps1 eps3"
#   CNNS=data/cnns/$DATASET             checkpoints, <eps>/<model>.ckpt
#   DATA=data/$DATASET/train.lmdb       images
#   INVERTED=data/$DATASET/inverted     where <model>_<eps>.pt, .csv, .png and .json go
#   INDICES=$INVERTED                   seed_indices.csv and target_indices.csv, which all jobs share
#   NUM=10000                           so many targets are drawn where there are no index files
#   FLAGS="--uint8 --precision bf16"    more flags of inversion.py
#   GPUS="0 1 2 3"                      default: all that nvidia-smi lists; none or "cpu": one job at a time on the CPU
#   LOGS=logs/invert                    one log per job
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/env.sh
source scripts/env.sh

export DATASET="${DATASET:-imagenet100}"
export MODELS="${MODELS:-resnet50 wide_resnet50_2 densenet161 vgg16_bn}"
export EPS="${EPS:-eps0 eps025 eps05 eps1 eps3}"
export CNNS="${CNNS:-data/cnns/$DATASET}"
export DATA="${DATA:-data/$DATASET/train.lmdb}"
export INVERTED="${INVERTED:-data/$DATASET/inverted}"
export INDICES="${INDICES:-$INVERTED}"
export NUM="${NUM:-10000}"
export FLAGS="${FLAGS:-}"
export LOGS="${LOGS:-logs/invert}"
export GPUS="${GPUS-$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null | xargs || true)}"
read -r -a slots <<<"${GPUS:-cpu}"

# Set `command` to what makes <model>_<eps>.pt.
set_command() { # model eps
    local -a flags
    read -r -a flags <<<"$FLAGS"
    command=(
        python inversion.py --dataset "$DATASET" --pretrain-dataset "$DATASET" --model "$1" --eps "$2"
        --model-dir "$CNNS/$2" --data-path "$DATA" --inverted-imgs-path "$INVERTED"
        --target-indices-path "$INDICES/target_indices.csv" --seed-indices-path "$INDICES/seed_indices.csv"
        --num-imgs-to-invert "$NUM" "${flags[@]}"
    )
}

# Run one job on the GPU of its slot; the end of its log says how it went.
run_job() { # model eps slot
    local gpu="${slots[$3]}" log="$LOGS/${1//:/_}_$2.log" status=0
    set_command "$1" "$2"
    if [ "$gpu" = cpu ]; then
        command+=(--device cpu)
    else
        export CUDA_VISIBLE_DEVICES="$gpu"
        command+=(--device cuda)
    fi
    echo "$(date +%T) on $gpu: $1 $2, log in $log"
    "${command[@]}" >"$log" 2>&1 || status=$?
    if [ "$status" -ne 0 ]; then
        echo "$(date +%T) on $gpu: $1 $2 FAILED with exit code $status: $(tail -n 1 "$log")" >&2
        return 1
    fi
    echo "$(date +%T) on $gpu: $1 $2 done: $(tail -n 1 "$log")"
}

case "${1:-}" in
    -h | --help)
        sed -n '2,23s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
        exit 0
        ;;
    --job) # how xargs calls this script for one job
        run_job "$2" "$3" "$SLOT"
        exit
        ;;
    "") ;;
    *) die "unknown argument $1: settings are given as environment variables, see --help" ;;
esac

jobs=()
for eps in $EPS; do
    for model in $MODELS; do
        jobs+=("$model" "$eps")
    done
done

if [ -n "${DRY_RUN:-}" ]; then
    for ((i = 0; i < ${#jobs[@]}; i += 2)); do
        set_command "${jobs[i]}" "${jobs[i + 1]}"
        printf '%q ' "${command[@]}"
        echo
    done
    exit 0
fi

ensure_environment
mkdir -p "$LOGS"
if printf '%s\0' "${jobs[@]}" |
    xargs -0 -n 2 -P "${#slots[@]}" --process-slot-var=SLOT bash scripts/invert_in100.sh --job; then
    echo "all inverted images are in $INVERTED"
else
    echo "some jobs failed (see above and $LOGS): the same command runs them again and skips the others" >&2
    exit 1
fi
