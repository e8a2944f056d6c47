# Sourced by every job of a study: sends what it prints to the log $1, and holds a device while it runs.
#
# Each word of UNIV_DEVICES is what one job at a time sees: cpu, a GPU's number, or several with commas between. A lock
# on a file holds a device; it goes with the job's processes, however they end. A cluster's scheduler assigns its own.
# shellcheck shell=bash
exec >"$1" 2>&1 </dev/null

take_device() {
    local folder="${TMPDIR:-/tmp}/univ-devices-$UID" word part lock names seen
    mkdir -p "$folder"
    while :; do
        seen=" "
        for word in $UNIV_DEVICES; do
            seen+="$word "
            names=()
            for part in ${word//,/ }; do # "0 0" are two places on one device; a CPU's places are this study's
                [ "$part" != cpu ] || part="cpu-$UNIV_STUDY"
                names+=("$part-$(grep -o " $word " <<<"${seen// /  }" | wc -l)")
            done
            held=()
            for part in "${names[@]}"; do
                exec {lock}>>"$folder/$part"
                held+=("$lock")
                flock --nonblock "$lock" || { release_devices; continue 2; }
            done
            export CUDA_VISIBLE_DEVICES="${word/#cpu/}"
            return
        done
        sleep 0.1
    done
}

release_devices() {
    local lock
    for lock in "${held[@]}"; do exec {lock}>&-; done
}

[ -n "${SLURM_JOB_ID:-}" ] || [ -z "${UNIV_DEVICES:-}" ] || take_device
if [ -S "${UNIV_WARM:-}" ]; then # only the command itself is shown
    python() {
        { local - && set +x; } 2>/dev/null
        if [ "$1" = -c ]; then command python "$@"; else command python -IS "$UNIV_SCRIPTS/warm.py" "$@"; fi
    }
fi
export PYTHONUNBUFFERED=1 TQDM_MININTERVAL="${TQDM_MININTERVAL:-10}" PS4='$ '
set -x
