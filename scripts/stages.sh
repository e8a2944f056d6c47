# Sourced by the pipelines: the jobs of every stage of the study, for one data set and the models trained on it.
#
#   configure imagenet100      settings from the environment, that data set's by default
#   stage_invert               queue and run the jobs of one stage
#   run_stages                 those that STAGES and SKIP leave, in order
# shellcheck shell=bash

# --- for people: what -h prints below a pipeline's own help -----------------------------------------------------------
#
# Which study:
#
#   EPS="eps0 eps025 eps05 eps1 eps3"   radii of the models
#   MODELS="resnet50 vgg16_bn"          architectures, at every radius (default: those the study compares there)
#   INPUTS="standard inverted"          images to compare on
#   NUM_IMAGES=10000  ITERATIONS=1000   images to invert (10000), steps of each (1000)
#   NUM_INPUTS=10000  EXP=0             regular images, unless there is an index file; tag of it and of the results
#   MEASURES=paper    FUNCS="dis jsd"   measures of representations (-r) and of predictions (-f)
#   KNN=10            MORE_KNN="100 500"  neighbours of the Jaccard similarity; and once more with these
#   SUBGROUP_EPS="eps0 eps3"            radii of the subgroups (first and last of EPS)
#   PROBE_EPS=eps3    NUM_PROBES=3  PROBE_EPOCHS=30   probes: of which models (last of EPS), how many of each, how long
#   EPOCHS=90                           of training
#   INVERT_FLAGS  COMPARE_FLAGS  FUNC_FLAGS  SUBGROUP_FLAGS  PROBE_FLAGS  TRAIN_FLAGS  EVALUATE_FLAGS
#                                       more words for the scripts, such as INVERT_FLAGS="--uint8 -b 128"
#   PRECISION=bf16    WORKERS=8         of every script that has --precision, --workers
#   LAUNCH="torchrun --standalone --nproc-per-node 2"   what runs training and inversion (python), see GPUS
#
# Where files are (the defaults are below data/, results/, runs/ and figs/; DATA, RESULTS, RUNS and FIGS move them):
#
#   MODEL_DIR   DATA/cnns, holds <data set>/<eps>/<model>.ckpt        INVERTED   DATA/<data set>/inverted
#   IMAGES      images to invert and to compare on, LABELS their labels, where they are files
#   TRAIN_DATA  train.lmdb and val.lmdb                               CACHE      RESULTS/cache, of representations
# --- end --------------------------------------------------------------------------------------------------------------

STAGE_ORDER=(download data train evaluate invert compare func subgroups probes figures)

configure() {
    DATASET="${DATASET:-$1}"
    DATA="${DATA:-data}" RESULTS="${RESULTS:-results}" RUNS="${RUNS:-runs}" FIGS="${FIGS:-figs}"
    MODEL_DIR="${MODEL_DIR:-$DATA/cnns}"
    INVERTED="${INVERTED:-$DATA/$DATASET/inverted}"
    CACHE="${CACHE:-$RESULTS/cache}"
    INDICES="${INDICES:-$RESULTS/indices}"
    EXP="${EXP:-0}"
    KNN="${KNN:-10}"
    PUBLISHED="${PUBLISHED:-models inverted}"
    LABELS="${LABELS:-}"
    read -ra eps_names <<<"${EPS:-eps0 eps025 eps05 eps1 eps3}"
    read -ra inputs <<<"${INPUTS:-standard inverted}"
    read -ra launch <<<"${LAUNCH:-python}"
    suffix=ckpt training=imagenet_training.py dataset_flags=() probe_dataset="$DATASET"
    case "$DATASET" in
        imagenet)
            TRAIN_DATA="${TRAIN_DATA:-$DATA/imagenet/ILSVRC}"
            if [ -d "$DATA/imagenet/images" ]; then # the validation images as files
                IMAGES="${IMAGES:-$DATA/imagenet/images}"
                LABELS="${LABELS:-$(first_file "$DATA/imagenet/labels/labels.csv")}"
            fi
            IMAGES="${IMAGES:-$TRAIN_DATA/val.lmdb}"
            dataset_flags=(-n 1000) probe_dataset=imagenet1k
            ;;
        imagenet100)
            TRAIN_DATA="${TRAIN_DATA:-$DATA/imagenet/imagenet100}"
            IMAGES="${IMAGES:-$DATA/imagenet100/train.lmdb}"
            dataset_flags=(-n 100)
            ;;
        imagenet50)
            TRAIN_DATA="${TRAIN_DATA:-$DATA/imagenet50}"
            IMAGES="${IMAGES:-$DATA/imagenet50/train.lmdb}"
            dataset_flags=(-n 50)
            ;;
        cifar10)
            TRAIN_DATA="${TRAIN_DATA:-$DATA/cifar10}"
            IMAGES="${IMAGES:-$DATA/cifar10}"
            suffix=pt training=cifar10_training.py
            ;;
        *) die "DATASET=$DATASET: choose from imagenet, imagenet100, imagenet50, cifar10" ;;
    esac
    local name
    for name in "${eps_names[@]}"; do
        radius_of "$name" >/dev/null
    done
    for name in "${inputs[@]}"; do
        [[ "$name" =~ ^(standard|inverted)$ ]] || die "INPUTS: unknown '$name', choose from standard, inverted"
    done
    last_eps="${eps_names[${#eps_names[@]} - 1]}"
    image_flags=(--data-path "$IMAGES")
    [ -z "$LABELS" ] || image_flags+=(--labels-path "$LABELS")
    common=()
    [ -z "${PRECISION:-}" ] || common+=(--precision "$PRECISION")
    [ -z "${WORKERS:-}" ] || common+=(--workers "$WORKERS")
}

# The first of some files that is there; nothing if none is.
first_file() {
    local path
    for path in "$@"; do
        if [ -f "$path" ]; then
            echo "$path"
            return
        fi
    done
}

# The L2 radius a name stands for, as univ/eps.py says.
radius_of() {
    case "$1" in
        eps0) echo 0 ;;
        eps025) echo 0.25 ;;
        eps05) echo 0.5 ;;
        eps1 | eps2 | eps3) echo "${1#eps}" ;;
        *) die "EPS: unknown radius '$1', choose from eps0, eps025, eps05, eps1, eps2, eps3" ;;
    esac
}

# Sets `models` to the architectures of radius $1: MODELS, or those the study compares.
find_models() {
    local line
    if [ -n "${MODELS:-}" ]; then
        read -ra models <<<"$MODELS"
        return
    fi
    if [ -z "${study_models:-}" ]; then # asked once: importing torch takes seconds
        [ -z "$DRY_RUN" ] || ensure_environment >&2
        study_models="$(
            python -c 'import sys
from univ.models import default_models
for eps in sys.argv[2:]: print(eps, *default_models(sys.argv[1], eps))' \
                "$DATASET" eps0 eps025 eps05 eps1 eps2 eps3
        )" || die "cannot list the models of $DATASET (see above)"
    fi
    while read -r line; do
        [ "${line%% *}" != "$1" ] || read -ra models <<<"${line#* }"
    done <<<"$study_models"
}

# The file of model $2 at radius $1, where there is one or should be one.
checkpoint_of() {
    local stem="$MODEL_DIR/$DATASET/$1/${2//:/_}" found
    found="$(first_file "$stem".{"$suffix",ckpt,pt,pth,safetensors})"
    echo "${found:-$stem.$suffix}"
}

# Set the words of an attack of training radius $1. The step is two thirds of the radius on ImageNet (Salman et al.
# 2020, whose models the study uses) and half of it on CIFAR-10: the scripts' own defaults, scaled.
set_attack() {
    local radius
    radius="$(radius_of "$1")"
    attack=(-o "$radius" -l "$radius/1.5" -p 3)
    [ "$DATASET" != cifar10 ] || attack=(-o "$radius" -l "$radius/2" -p 3)
}

# --- stages -----------------------------------------------------------------------------------------------------------

# The published models and inverted images, unless all of them are there.
stage_download() {
    local eps model what words names=() missing=""
    read -ra what <<<"$PUBLISHED"
    for eps in "${eps_names[@]}"; do
        find_models "$eps"
        for model in "${models[@]}"; do
            [[ "$model" != *:* ]] || continue # a network of torchvision or timm, which the study does not publish
            [[ " $PUBLISHED " != *" models "* ]] || [ -f "$(checkpoint_of "$eps" "$model")" ] || missing=1
            [[ " $PUBLISHED " != *" inverted "* ]] ||
                [ -n "$(first_file "$INVERTED/${model//:/_}_$eps".{pt,npy})" ] || missing=1
        done
    done
    words=(python scripts/download_data.py --what "${what[@]}" -d "$DATASET" -o "${eps_names[@]}" --root "$DATA")
    if [ -n "${MODELS:-}" ]; then
        for model in "${models[@]}"; do
            [[ "$model" == *:* ]] || names+=("$model")
        done
        words+=(--model-names "${names[@]}")
    fi
    [ -z "$missing" ] || add_job "$DATASET" "${words[@]}"
    run_jobs download
}

# The images: LMDB files from folders of images, subsets, CIFAR-10.
stage_data() {
    local split splits=()
    case "$DATASET" in
        cifar10)
            # torchvision's function fetches, compares the checksum and unpacks; its data set class would unpickle too
            add_job -o "$TRAIN_DATA/cifar-10-batches-py/test_batch" cifar10 python -c \
                'import sys; from torchvision.datasets import CIFAR10, utils; utils.download_and_extract_archive(CIFAR10.url, sys.argv[1], filename=CIFAR10.filename, md5=CIFAR10.tgz_md5)' \
                "$TRAIN_DATA"
            ;;
        imagenet50)
            for split in train val; do
                add_job -o "$TRAIN_DATA/$split.lmdb" "$split" \
                    python univ/utils/imagenet50.py -f "$DATA/imagenet/imagenet100" -s "$split" --out "$TRAIN_DATA"
            done
            ;;
        *)
            # with published models, the part that models are compared on is all that is needed
            [ "$IMAGES" != "$TRAIN_DATA/val.lmdb" ] || splits+=(val)
            [ "$DATASET" != imagenet100 ] || [ -e "$IMAGES" ] || splits+=(train)
            ! is_selected train evaluate probes || splits=(train val)
            for split in "${splits[@]}"; do
                add_job -o "$TRAIN_DATA/$split.lmdb" "$split" \
                    python univ/utils/folder2lmdb.py -f "$TRAIN_DATA" -s "$split" -p "${WORKERS:-4}"
            done
            ;;
    esac
    run_jobs data
    if [ "$DATASET" = imagenet100 ] && [ "$IMAGES" = "$DATA/imagenet100/train.lmdb" ]; then
        # models are compared on the training part, which has its own place; the file is the same
        add_job -o "$IMAGES" imagenet100 mkdir -p "$DATA/imagenet100" "&&" \
            ln -s "$(realpath -m --relative-to "$DATA/imagenet100" "$TRAIN_DATA/train.lmdb")" "$IMAGES"
        run_jobs "data for comparisons"
    fi
}

stage_train() {
    local eps model save target words flags
    read -ra flags <<<"${TRAIN_FLAGS:-}"
    for eps in "${eps_names[@]}"; do
        find_models "$eps"
        for model in "${models[@]}"; do
            target="$(checkpoint_of "$eps" "$model")"
            save="$RUNS/training/$DATASET/$eps/${model//:/_}"
            words=("${launch[@]}" "$training" "${dataset_flags[@]}" -m "$model" -d "$TRAIN_DATA" -s "$save" --resume)
            if [ "$eps" != eps0 ]; then
                set_attack "$eps"
                words+=(-a 1 "${attack[@]}")
            fi
            words+=(-e "${EPOCHS:-90}" "${common[@]}" "${flags[@]}")
            add_job -o "$target" "$model $eps" "${words[@]}" "&&" mkdir -p "${target%/*}" "&&" \
                cp "$save/${model//:/_}.$suffix" "$target.tmp" "&&" mv "$target.tmp" "$target"
        done
    done
    run_jobs train
}

# Clean and robust accuracy of every model.
stage_evaluate() {
    local eps model table flags
    read -ra flags <<<"${EVALUATE_FLAGS:-}"
    for eps in "${eps_names[@]}"; do
        find_models "$eps"
        attack=() # of models trained without one: the script's own, the largest of the study
        [ "$eps" = eps0 ] || set_attack "$eps"
        for model in "${models[@]}"; do
            table="$RESULTS/accuracy/$DATASET/${model//:/_}_$eps.csv"
            add_job -o "$table" "$model $eps" python "$training" "${dataset_flags[@]}" -t 0 -m "$model" \
                -v "$(checkpoint_of "$eps" "$model")" -d "$TRAIN_DATA" "${attack[@]}" --results-file "$table" \
                "${common[@]}" "${flags[@]}"
        done
    done
    run_jobs evaluate
}

stage_invert() {
    local eps model stem there flags
    read -ra flags <<<"${INVERT_FLAGS:-}"
    for eps in "${eps_names[@]}"; do
        find_models "$eps"
        for model in "${models[@]}"; do
            stem="$INVERTED/${model//:/_}_$eps"
            there="$(first_file "$stem".{pt,npy})" # published ones may be .npy
            add_job -o "${there:-$stem.pt}" "$model $eps" "${launch[@]}" inversion.py -d "$DATASET" \
                -m "$model" -e "$eps" --model-dir "$MODEL_DIR/$DATASET/$eps" "${image_flags[@]}" -i "$INVERTED" \
                -n "${NUM_IMAGES:-10000}" --iterations "${ITERATIONS:-1000}" "${common[@]}" "${flags[@]}"
        done
    done
    run_jobs invert
}

# Set `words` to a comparison by script $1 of the models of radius $2 on the images of kind $3.
set_comparison() {
    words=(python "$1" -d "$DATASET" -m "$DATASET" -o "$2" --model-dir "$MODEL_DIR" --results "$RESULTS")
    words+=("${image_flags[@]}" --index-file-dir "$INDICES")
    if [ "$3" = inverted ]; then
        words+=(-i 1 --inverted-imgs-dir "$INVERTED")
    else
        words+=(--cache-dir "$CACHE") # a set per pair of models is too much for inverted images, on CIFAR-10 70 GB
        [ -z "${NUM_INPUTS:-}" ] || words+=(--num-inputs "$NUM_INPUTS")
    fi
    if [ -n "${MODELS:-}" ]; then
        find_models "$2"
        words+=(--model-names "${models[@]}")
    fi
    words+=("${common[@]}")
}

stage_compare() {
    local eps input k copy words flags measures more_knn=()
    read -ra flags <<<"${COMPARE_FLAGS:-}"
    read -ra measures <<<"${MEASURES:-paper}"
    [[ ! " ${measures[*]} " =~ \ (paper|all|jacc)\  ]] || more_knn=(100 500)
    [ -z "${MORE_KNN+set}" ] || read -ra more_knn <<<"$MORE_KNN"
    [[ " ${more_knn[*]} " != *" $EXP "* ]] || die "EXP=$EXP is the tag of the results for k=$EXP: choose another (MORE_KNN)"
    for input in "${inputs[@]}"; do
        for eps in "${eps_names[@]}"; do
            set_comparison rep.py "$eps" "$input"
            add_job "$eps $input" "${words[@]}" -e "$EXP" -r "${measures[@]}" -k "$KNN" "${flags[@]}"
        done
    done
    run_jobs compare
    # The further k have a tag of their own in the results' names, but the same images.
    if [[ " ${inputs[*]} " == *" standard "* ]]; then
        for k in "${more_knn[@]}"; do
            copy="$INDICES/$DATASET/indices_$k.csv"
            add_job -o "$copy" "k $k" \
                cp "$INDICES/$DATASET/indices_$EXP.csv" "$copy.tmp" "&&" mv "$copy.tmp" "$copy"
        done
        run_jobs "images for further k"
    fi
    for input in "${inputs[@]}"; do
        for k in "${more_knn[@]}"; do
            for eps in "${eps_names[@]}"; do
                set_comparison rep.py "$eps" "$input"
                add_job "$eps $input k $k" "${words[@]}" -e "$k" -r jacc -k "$k" "${flags[@]}"
            done
        done
    done
    run_jobs "further k"
}

stage_func() {
    local eps input words flags funcs
    read -ra flags <<<"${FUNC_FLAGS:-}"
    read -ra funcs <<<"${FUNCS:-dis jsd}"
    for input in "${inputs[@]}"; do
        for eps in "${eps_names[@]}"; do
            set_comparison func.py "$eps" "$input"
            add_job "$eps $input" "${words[@]}" -e "$EXP" -f "${funcs[@]}" "${flags[@]}"
        done
    done
    run_jobs func
}

# Similarity on the images on which two models agree and on those on which they differ.
stage_subgroups() {
    local eps radii words flags
    read -ra flags <<<"${SUBGROUP_FLAGS:-}"
    read -ra radii <<<"${SUBGROUP_EPS:-${eps_names[0]} $last_eps}"
    mapfile -t radii < <(printf '%s\n' "${radii[@]}" | uniq)
    for eps in "${radii[@]}"; do
        set_comparison rep.py "$eps" standard
        add_job -o "$CACHE/reps__${DATASET}_${eps}_i0" "$eps" "${words[@]}" -e "$EXP" --no-comparisons
    done
    run_jobs "represent for subgroups"
    words=(python subgroup_sim.py --cache-dir "$CACHE" -d "$DATASET" --eps "${radii[@]}")
    [ -z "${MODELS:-}" ] || words+=(--models "${models[@]}")
    add_job "$DATASET" "${words[@]}" --results "$RESULTS/subgroups/$DATASET" "${flags[@]}"
    run_jobs subgroups
}

# Set `words` to train_probe.py for model $2 of radius $1, with the representations in the cache.
set_probe() {
    words=(python train_probe.py -m "$(checkpoint_of "$1" "$2")" -a "$2" -d "$probe_dataset")
    if [ "$DATASET" = cifar10 ]; then
        words+=(--lmdb-file "$TRAIN_DATA" --val-lmdb-file "$TRAIN_DATA")
    else
        words+=(--lmdb-file "$TRAIN_DATA/train.lmdb" --val-lmdb-file "$TRAIN_DATA/val.lmdb")
    fi
    words+=(--run-name "$DATASET/${2//:/_}_$1" --runs "$RUNS/probes" --cache-dir "$CACHE/probes" "${common[@]}")
}

# Representations of all training and validation images: 10 GB a model for ImageNet-1k at 2048 columns in float32.
stage_extract() {
    local eps model words flags
    read -ra flags <<<"${PROBE_FLAGS:-}"
    for eps in ${PROBE_EPS:-$last_eps}; do
        find_models "$eps"
        for model in "${models[@]}"; do
            set_probe "$eps" "$model"
            add_job "$model $eps" "${words[@]}" --epochs 0 --num-probes 0 "${flags[@]}"
        done
    done
    run_jobs "represent for probes"
}

stage_probes() {
    local eps model words flags
    read -ra flags <<<"${PROBE_FLAGS:-}"
    for eps in ${PROBE_EPS:-$last_eps}; do
        find_models "$eps"
        for model in "${models[@]}"; do # each extracts the representations first, unless they are there
            set_probe "$eps" "$model"
            add_job -o "$RUNS/probes/$DATASET/${model//:/_}_$eps/finished.json" "$model $eps" "${words[@]}" \
                --epochs "${PROBE_EPOCHS:-30}" --num-probes "${NUM_PROBES:-3}" "${flags[@]}"
        done
    done
    run_jobs "train probes"
    add_job "$DATASET" python compare_probes.py --runs "$RUNS/probes/$DATASET" --cache-dir "$CACHE/probes" \
        --out "$RESULTS/probing/$DATASET/probe_agreement.csv"
    run_jobs "compare probes"
}

# All figures that the results allow, those of other data sets included, and the page of all results; again when a
# result is newer.
stage_figures() {
    add_job -o "$FIGS/.drawn" -i "$RESULTS" figures \
        python -m univ.plots --results "$RESULTS" --data "$DATA" --figs "$FIGS" -k "$KNN" "&&" \
        python scripts/report.py --results "$RESULTS" --data "$DATA" -k "$KNN" "&&" \
        mkdir -p "$FIGS" "&&" touch "$FIGS/.drawn"
    run_jobs figures
}

# Whether one of these stages is to be run.
is_selected() {
    local stage
    for stage in "$@"; do
        [[ " ${selected[*]} " != *" $stage "* ]] || return 0
    done
    return 1
}

# Run the stages named in STAGES, less those in SKIP; $@: what STAGES is by default.
run_stages() {
    local stage selected=() asked=" ${STAGES:-$*} " skipped=" ${SKIP:-} " number=0
    for stage in ${STAGES:-} ${SKIP:-}; do
        [[ " ${STAGE_ORDER[*]} " == *" $stage "* ]] || die "no stage '$stage': choose from ${STAGE_ORDER[*]}"
    done
    for stage in "${STAGE_ORDER[@]}"; do
        if [[ "$asked" == *" $stage "* && "$skipped" != *" $stage "* ]]; then selected+=("$stage"); fi
    done
    for stage in "${selected[@]}"; do
        number=$((number + 1))
        say "[$number/${#selected[@]}] $DATASET: $stage"
        "stage_$stage"
    done
}

# The stages of a whole study by default: what PUBLISHED fetches is not made.
study_stages() {
    local word made=(data)
    for word in $PUBLISHED; do
        [[ "$word" =~ ^(models|inverted|none)$ ]] || die "PUBLISHED: unknown '$word', choose from models, inverted, none"
    done
    [ "$PUBLISHED" = none ] || made+=(download)
    [[ " $PUBLISHED " == *" models "* ]] || made+=(train evaluate)
    [[ " $PUBLISHED " == *" inverted "* ]] || made+=(invert)
    echo "${made[@]}" compare func subgroups probes figures
}
