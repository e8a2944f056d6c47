# Sourced by the pipelines: a queue that runs jobs side by side, one per device, and what every pipeline begins with.
#
#   add_job [-o FILE] [-i FOLDER] NAME WORD...   queue a command; the word && joins two commands
#   run_jobs STAGE                               run what is queued and not done, wait for it
#
# A job is done when its -o FILE is there (and, with -i, nothing below FOLDER is newer); a job without -o is started
# every time, because its command itself keeps what is there. A job that fails, or does not write its -o FILE, ends the
# pipeline: nothing more is started, what runs is waited for, and the exit code is 1.
# shellcheck shell=bash

# --- for people: what -h prints below a pipeline's own help -----------------------------------------------------------
#
# All pipelines understand, from the environment:
#
#   GPUS="0 1 2"        GPUs to use, one job at a time on each; "0,1 2,3" gives two to a job (see LAUNCH), "0 0" runs two
#                       jobs on one. Default: those in CUDA_VISIBLE_DEVICES, else all that nvidia-smi lists, else the CPU
#   DEVICES="cpu cpu"   the same with CPUs among them: here two jobs at a time on the CPU
#   DRY_RUN=1           print the commands that are not done yet, one per line, and run nothing; commands between
#                       two lines that begin with # are independent of each other
#   KEEP_GOING=1        after a failure go on with the other jobs of the stage, then stop
#   LOGS=logs           where every job's output goes: LOGS/<pipeline>/<stage>/<job>.log
#   VENV=.venv          the virtual environment, made when needed; VENV=none uses the python on the PATH
#
# Run a pipeline again to continue it: what is done is skipped. Ctrl-C and SIGTERM end the running jobs, which continue
# where they were next time. Exit codes: 0 done, 1 a job failed, 2 wrong use, 130 and 143 interrupted.
# --- end --------------------------------------------------------------------------------------------------------------

# shellcheck source=scripts/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

PIPELINE="$(basename "$0" .sh)"
LOGS="${LOGS:-logs}"
DRY_RUN="${DRY_RUN:-}"
[ "$DRY_RUN" != 0 ] || DRY_RUN=""
KEEP_GOING="${KEEP_GOING:-}"
[ "$KEEP_GOING" != 0 ] || KEEP_GOING=""
GRACE=30 # seconds from asking jobs to end to killing them

print_help() {
    local file
    print_header
    for file in stages.sh lib.sh; do
        echo
        sed -n '/^# --- for people/,/^# --- end/p' "$ROOT/scripts/$file" | sed '1,2d;$d;s/^# \{0,1\}//'
    done
}

# What every pipeline begins with: its only argument is a request for help, the rest comes from the environment.
start_pipeline() {
    case "${1:-}" in
        "") ;;
        -h | --help)
            print_help
            exit 0
            ;;
        *) die "unexpected argument '$1': a pipeline takes its settings from the environment (see -h)" ;;
    esac
    ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || die "bash $BASH_VERSION is too old: 4.4 or newer is needed"
    [ -n "$DRY_RUN" ] || ensure_environment
    find_devices
    trap end_jobs EXIT
    trap 'interrupted 129' HUP
    trap 'interrupted 130' INT
    trap 'interrupted 143' TERM
    # progress bars go to log files: a line now and then
    export PYTHONUNBUFFERED=1 TQDM_MININTERVAL="${TQDM_MININTERVAL:-10}"
}

# Sets `devices`: for each job that may run at a time, the value of its CUDA_VISIBLE_DEVICES; empty is the CPU.
find_devices() {
    local word found
    devices=()
    if [ -n "${DEVICES:-${GPUS:-}}" ]; then
        for word in ${DEVICES:-$GPUS}; do
            case "$word" in
                cpu) devices+=("") ;;
                cuda:*) devices+=("${word#cuda:}") ;;
                *) devices+=("$word") ;;
            esac
        done
    elif [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
        IFS=, read -ra devices <<<"${CUDA_VISIBLE_DEVICES:-,}" # set but empty hides all GPUs: the CPU then
    elif found="$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null)" && [ -n "$found" ]; then
        mapfile -t devices <<<"$found"
    else
        devices=("")
    fi
}

# Progress, for people; the standard output of a dry run is for commands.
say() {
    if [ -n "$DRY_RUN" ]; then echo "$*" >&2; else echo "$*"; fi
}

# --- the queue --------------------------------------------------------------------------------------------------------

job_names=() job_outputs=() job_inputs=() job_commands=()
# by device: process that runs there (it leads a process group), number of its job, when it began
running=() running_job=() running_since=()
failed=() # names of jobs
listed="" # whether a dry run has printed a command

add_job() {
    local OPTIND=1 option output="" input="" word command=""
    while getopts o:i: option; do
        case "$option" in
            o) output="$OPTARG" ;;
            i) input="$OPTARG" ;;
            *) die "add_job: wrong use" ;;
        esac
    done
    shift $((OPTIND - 1))
    job_names+=("$1")
    job_outputs+=("$output")
    job_inputs+=("$input")
    shift
    for word in "$@"; do
        [ "$word" = "&&" ] || printf -v word %q "$word"
        command+="${command:+ }$word"
    done
    job_commands+=("$command")
}

# Whether job $1 need not be started.
is_done() {
    local output="${job_outputs[$1]}" input="${job_inputs[$1]}"
    [ -n "$output" ] && [ -e "$output" ] || return 1
    [ -z "$input" ] || [ -z "$(find "$input" -type f -newer "$output" -print -quit)" ]
}

# Run the queued jobs of stage $1 that are not done.
run_jobs() {
    local stage="$1" folder="$LOGS/$PIPELINE/${1// /_}" started=$SECONDS todo=() job before
    for job in "${!job_names[@]}"; do
        is_done "$job" || todo+=("$job")
    done
    before=$((${#job_names[@]} - ${#todo[@]}))
    if [ -n "$DRY_RUN" ]; then
        [ ${#todo[@]} -eq 0 ] || [ -z "$listed" ] || echo "# $stage: after all of the above"
        for job in "${todo[@]}"; do
            echo "${job_commands[$job]}"
            listed=1
        done
    elif [ ${#todo[@]} -eq 0 ]; then
        echo "$stage: done already"
    else
        echo "$stage: ${#todo[@]} to run, ${#devices[@]} at a time, logs in $folder/"
        run_todo
        echo "$stage: done in $((SECONDS - started)) s$([ "$before" = 0 ] || echo ", $before done before")"
    fi
    job_names=() job_outputs=() job_inputs=() job_commands=()
}

# Run the jobs of run_jobs' `todo`, one at a time per device. Polling, as bash 4 cannot tell which job `wait -n` saw end.
run_todo() {
    local next=0 ended=0 device threads
    # each job's share of the cores; fewer jobs than devices share them among themselves
    threads=$(($(getconf _NPROCESSORS_ONLN) / (${#todo[@]} < ${#devices[@]} ? ${#todo[@]} : ${#devices[@]})))
    threads=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}
    while :; do
        for device in "${!devices[@]}"; do
            if [ -n "${running[$device]:-}" ] && ! kill -0 "${running[$device]}" 2>/dev/null; then
                ended=$((ended + 1))
                end_of_job "$device" "$ended/${#todo[@]}"
            fi
            if [ -z "${running[$device]:-}" ] && [ "$next" -lt ${#todo[@]} ] &&
                { [ ${#failed[@]} -eq 0 ] || [ -n "$KEEP_GOING" ]; }; then
                start_job "$device" "${todo[$next]}"
                next=$((next + 1))
            fi
        done
        [ "$next" -gt "$ended" ] || break
        sleep 0.1
    done
    if [ ${#failed[@]} -gt 0 ]; then
        echo "$PIPELINE: $stage stopped: ${#failed[@]} of ${#todo[@]} jobs failed: $(join_words "${failed[@]}")" >&2
        exit 1
    fi
}

log_of() {
    echo "$folder/${job_names[$1]//[^A-Za-z0-9._+-]/_}.log"
}

# Start job $2 on device $1.
start_job() {
    local log
    log="$(log_of "$2")"
    mkdir -p "$folder"
    set -m # a process group of its own, so that it can be ended with its worker processes
    (
        set +m
        trap - EXIT HUP
        trap 'exit 143' INT TERM # after the command in the foreground, which gets the signal too, has ended
        exec >"$log" 2>&1 </dev/null
        export CUDA_VISIBLE_DEVICES="${devices[$1]}" OMP_NUM_THREADS="$threads"
        echo "\$ CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES ${job_commands[$2]}"
        eval "${job_commands[$2]}"
    ) &
    set +m
    running[$1]=$!
    running_job[$1]=$2
    running_since[$1]=$SECONDS
}

# Note how the job on device $1 ended; $2 says how many have.
end_of_job() {
    local job="${running_job[$1]}" seconds=$((SECONDS - running_since[$1])) status=0 problem="" log
    wait "${running[$1]}" || status=$?
    running[$1]=""
    if [ "$status" -ne 0 ]; then
        problem="exit code $status"
    elif [ -n "${job_outputs[$job]}" ] && [ ! -e "${job_outputs[$job]}" ]; then
        problem="it ended without writing ${job_outputs[$job]}"
    fi
    if [ -z "$problem" ]; then
        echo "  [$2] ${job_names[$job]}: $seconds s"
        return
    fi
    failed+=("${job_names[$job]}")
    log="$(log_of "$job")"
    {
        echo "  [$2] ${job_names[$job]}: FAILED after $seconds s, $problem; the end of $log:"
        tr '\r' '\n' <"$log" | tail -n 15 | sed 's/^/    /'
        [ -z "$(join_words "${running[@]}")" ] || echo "  waiting for the running jobs (Ctrl-C ends them)"
    } >&2
}

# The words that are not empty, with commas.
join_words() {
    local word joined=""
    for word in "$@"; do
        [ -z "$word" ] || joined+="${joined:+, }$word"
    done
    echo "$joined"
}

# End the running jobs: ask them, wait for them, kill what is left of their process groups.
end_jobs() {
    local pid deadline=$((SECONDS + GRACE))
    for pid in "${running[@]}"; do
        [ -z "$pid" ] || kill -TERM -- "-$pid" 2>/dev/null || true
    done
    for pid in "${running[@]}"; do
        [ -n "$pid" ] || continue
        while kill -0 "$pid" 2>/dev/null && [ $SECONDS -lt $deadline ]; do
            sleep 0.1
        done
        kill -KILL -- "-$pid" 2>/dev/null || true
    done
    running=()
}

interrupted() {
    trap - HUP INT TERM
    say "$PIPELINE: interrupted, ending the running jobs; the same command continues"
    end_jobs
    exit "$1"
}
