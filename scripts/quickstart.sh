#!/usr/bin/env bash
# The whole study on handwritten digits, from nothing: five to six minutes on two cores after the install.
#
#   bash scripts/quickstart.sh            makes .venv when needed, runs what is not done yet, prints the summary
#   bash scripts/quickstart.sh --fresh    removes what earlier runs made of the digits and starts over
#   bash scripts/quickstart.sh --smoke    a small form in two minutes, below smoke/ (also SMOKE=1)
#
#   --out FOLDER   where data/, results/, runs/ and figs/ go (default: here, or smoke/; also OUT=FOLDER)
#   --jobs N       jobs side by side (default: one per core)
#   --seed N       of training and of what is drawn (default: 0)
#
# A second run skips everything done; a killed run continues. Other words are those of scripts/study.sh, which this runs
# on scripts/studies/digits.yaml. Exit codes: 0 done, 1 a job failed, 2 wrong use.
set -euo pipefail
here="$PWD"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/env.sh
source scripts/env.sh

answer_help "$@"
files=(scripts/studies/digits.yaml) words=() fresh="" dry="" smoke="${SMOKE:-0}" jobs="$(getconf _NPROCESSORS_ONLN)"
while [ $# -gt 0 ]; do
    case "$1" in
        --smoke) smoke=1 ;;
        --fresh) fresh=1 ;;
        --out | --jobs | --seed)
            [ $# -gt 1 ] || die "$1 needs a value"
            case "$1" in
                --out) OUT="$(cd "$here" && realpath -m -- "$2")" ;;
                --jobs) [[ "$2" =~ ^[1-9][0-9]{0,3}$ ]] || die "--jobs: expected a number of processes, got $2"; jobs="$2" ;;
                --seed) [[ "$2" =~ ^[0-9]{1,18}$ ]] || die "--seed: expected a number, got $2"; words+=("common={seed: $2}") ;;
            esac
            shift
            ;;
        *) words+=("$1") ;;
    esac
    shift
done
if [ -n "$smoke" ] && [ "$smoke" != 0 ]; then
    files+=(scripts/studies/smoke.yaml)
    OUT="${OUT:-smoke}"
fi
export OUT="${OUT:-.}"
[[ " ${words[*]} " != *" -n "* ]] || dry=1
if [ -n "$fresh" ] && [ -z "$dry" ]; then # of the digits, and nothing of other data sets
    rm -rf "$OUT"/data/{cnns/digits,digits/inverted} "$OUT"/runs/{training,probes}/digits "$OUT"/figs/notebooks
    [ ! -d "$OUT/results" ] || find "$OUT/results" -depth \( -type d -name digits -o -path "*/cache/*digits*" \) -exec rm -rf {} +
fi
if [ -z "${DEVICES:-}" ]; then
    printf -v DEVICES 'cpu %.0s' $(seq "$jobs")
    export DEVICES
fi
started=$SECONDS
bash scripts/study.sh "${files[@]}" "${words[@]}" &
study=$!
stop() {
    kill -TERM "$study" 2>/dev/null || true
    wait "$study" || true
    exit "$1"
}
trap 'stop 129' HUP
trap 'stop 130' INT
trap 'stop 143' TERM
wait "$study"
[ -n "$dry" ] || [ ! -f "$OUT/results/digits/summary.md" ] || {
    echo
    cat "$OUT/results/digits/summary.md"
    echo
    echo "$OUT/results/digits/summary.md, $OUT/results/digits/report.html and $OUT/figs/ after $((SECONDS - started)) s"
}
