#!/usr/bin/env bash
# ./dev bench planner [times] [ARG...]: see README.md beside this file. Arguments go to planner.py, behind `times` to
# times.py.
#
# LEMO_TRAIN: the program to measure. LEMO_PLAN_MEMORY: the one that predicts bytes.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
if [[ ${1:-} == times ]]; then exec python3 "$here/times.py" "${@:2}"; fi
exec python3 "$here/planner.py" "$@"
