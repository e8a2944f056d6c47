#!/usr/bin/env bash
# Run a study, or what is missing of it: one YAML file, from the data to the figures.
#
#   bash scripts/study.sh scripts/studies/digits.yaml
#   bash scripts/study.sh my.yaml invert compare            only these stages, and what they need
#   bash scripts/study.sh my.yaml eps=[eps3] -n             with another value of a key; -n only prints the commands
#   bash scripts/study.sh my.yaml --profile scripts/profiles/slurm    as jobs of SLURM
#
# Stages: download data train evaluate invert compare func subgroups probes figures. KEY=VALUE is a key of the file
# (scripts/studies/example.yaml explains each); a second .yaml goes on top of the first. All other words are
# Snakemake's: --keep-going goes on after a failure, --forcerun RULE runs a stage again, --dag draws the jobs.
#
#   GPUS="0 1 2"     GPUs to use, one job at a time on each; "0,1 2,3" gives two to a job (see launch in the file),
#                    "0 0" runs two jobs on one. Default: all that nvidia-smi lists, else the CPU
#   DEVICES="cpu cpu"   the same with CPUs: two jobs at a time here
#   OUT=.            folder of data/, results/, runs/, figs/ and logs/
#   VENV=.venv       the virtual environment, made when needed; VENV=none uses the python on the PATH
#
# Run it again to continue: what is done is skipped. Ctrl-C and SIGTERM end the running jobs, which continue where they
# were. Exit codes: 0 done, 1 a job failed, 2 wrong use, 130 and 143 interrupted.
set -euo pipefail
here="$PWD"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/env.sh
source scripts/env.sh

answer_help "${@:---help}"
files=() stages=() keys=() flags=() value=""
for word in "$@"; do
    case "$word" in
        -n | --keep-going) flags=("$word" "${flags[@]}") ;; # take no value: a stage may follow
        -*) flags+=("$word") value=1 ;;
        *.yaml | *.yml) if [ -f "$here/$word" ]; then files+=("$here/$word"); else files+=("$word"); fi ;;
        *=*) keys+=("$word") ;;
        *) if [ -n "$value" ]; then flags+=("$word"); else stages+=("$word"); fi ;;
    esac
done
[ ${#files[@]} -gt 0 ] || die "which study? Give its .yaml file (see -h)"
ensure_environment
files=("$(realpath -- "${files[0]}")" "${files[@]:1}")
listed="stages=[$(IFS=,; echo "${stages[*]}")]"
resolved="$(UNIV_HERE="$here" python scripts/study.py "${files[@]}" "${keys[@]}" "$listed")"
[ -z "$resolved" ] || keys+=("$resolved")

if [ -z "${DEVICES:-${GPUS:-}}" ]; then
    if found="$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null)" && [ -n "$found" ]; then
        DEVICES="${found//$'\n'/ }"
    else
        DEVICES=cpu
    fi
fi
read -ra devices <<<"${DEVICES:-${GPUS//,/,}}"
cluster="" # a scheduler that assigns devices itself: no limit here, and no process to fork jobs from
[[ " ${flags[*]} " != *" --profile "* && " ${flags[*]} " != *" --executor "* ]] || cluster=1
cores="$(python -c 'import os; print(len(os.sched_getaffinity(0)))')"
threads=$((cores / ${#devices[@]}))
limits=(--cores "$((cores > ${#devices[@]} ? cores : ${#devices[@]}))" --resources "gpu=${#devices[@]}")
[ -z "$cluster" ] || limits=()
export UNIV_DEVICES="${devices[*]}" PYTHONPATH="$ROOT/scripts:$PYTHONPATH"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}"
out="$(realpath -m -- "${OUT:-.}")"
mkdir -p "$out"
UNIV_STUDY="$(cksum <<<"$out" | cut -d' ' -f1)"
export UNIV_STUDY
exec {lock}>>"$out/.study-lock"
flock --nonblock "$lock" || die "another study is running in $out"

export UNIV_SCRIPTS="$ROOT/scripts"
set -m # a process group of its own, so that it can be ended with its jobs
(
    if [[ -z "$cluster" && " ${devices[*]} " != *[0-9]* && " ${flags[*]} " != *" -n "* ]]; then # on CPUs jobs are forks of one process
        export UNIV_WARM
        UNIV_WARM="$(mktemp -d)/socket"
        python scripts/warm.py --serve "$UNIV_WARM" {lock}>&- &
    fi
    exec snakemake --snakefile scripts/Snakefile --directory "$out" --configfile "${files[@]}" \
        --config "${keys[@]}" "$listed" "${limits[@]}" --logger study --rerun-incomplete --nolock --latency-wait 1 \
        --rerun-triggers mtime params input "${flags[@]}"
) &
pid=$!
set +m
interrupted() {
    trap - HUP INT TERM
    echo "interrupted, ending the running jobs; the same command continues" >&2
    kill -TERM -- "-$pid" 2>/dev/null || true
    for _ in {1..300}; do kill -0 -- "-$pid" 2>/dev/null || exit "$1"; sleep 0.1; done
    kill -KILL -- "-$pid" 2>/dev/null || true
    exit "$1"
}
trap 'interrupted 129' HUP
trap 'interrupted 130' INT
trap 'interrupted 143' TERM
status=0
wait "$pid" || status=$?
kill -TERM -- "-$pid" 2>/dev/null || true
exit "$status"
