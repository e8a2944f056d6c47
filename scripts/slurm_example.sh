#!/usr/bin/env bash
# Run a pipeline on a SLURM cluster: the commands that DRY_RUN=1 lists, as arrays of one-GPU tasks, each array after the
# one before it. An example: change the lines that begin with #SBATCH to fit your cluster.
#
#   bash scripts/slurm_example.sh scripts/invert_in100.sh
#   EPS=eps3 MAX_TASKS=8 bash scripts/slurm_example.sh scripts/compare_in100.sh
#   SBATCH_FLAGS="--partition gpu --account you" SKIP=download bash scripts/slurm_example.sh scripts/reproduce_cifar10.sh
#
# Download first where there is a network (STAGES="download data"); that makes the environment, too. The pipelines'
# environment variables work here; MAX_TASKS limits how many tasks of an array run at a time. Lists of commands and the
# tasks' output are in LOGS/slurm/<pipeline>/<time>/. When a task fails, the arrays after it are cancelled; submit again
# to run what is missing.

#SBATCH --job-name=univ
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=24:00:00
set -euo pipefail

if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then # a task: run its line of the list, in the folder it was submitted from
    # shellcheck source=scripts/env.sh
    source scripts/env.sh
    ensure_environment
    command="$(sed -n "${SLURM_ARRAY_TASK_ID}p" "$1")"
    echo "\$ $command"
    exec bash -c "$command"
fi

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/env.sh
source scripts/env.sh
answer_help "${@:---help}"
pipeline="$1"
name="$(basename "$pipeline" .sh)"
folder="${LOGS:-logs}/slurm/$name/$(date +%Y-%m-%d_%H-%M-%S)"
mkdir -p "$folder"
DRY_RUN=1 bash "$pipeline" >"$folder/commands"
# one list per group of commands that do not need each other
awk -v folder="$folder" 'BEGIN { n = 1 } /^#/ { n++; next } { printf "%s\n", $0 > sprintf("%s/%02d.jobs", folder, n) }' \
    "$folder/commands"
read -ra flags <<<"${SBATCH_FLAGS:-}"
previous=()
for jobs in "$folder"/*.jobs; do
    [ -f "$jobs" ] || { echo "$name: nothing to do"; exit 0; }
    count="$(wc -l <"$jobs")"
    id="$(sbatch --parsable --array="1-$count${MAX_TASKS:+%$MAX_TASKS}" --output="${jobs%.jobs}_%a.log" \
        --chdir="$PWD" --kill-on-invalid-dep=yes "${previous[@]}" "${flags[@]}" scripts/slurm_example.sh "$jobs")"
    previous=(--dependency="afterok:${id%%;*}")
    echo "array ${id%%;*}: $count tasks of $jobs"
done
