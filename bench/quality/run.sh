#!/usr/bin/env bash
# ./dev bench quality [ARG...]: see README.md beside this file. Arguments go to run.py.
#
# LEMO_TRAIN: the program to study. LEMO_NOVELS: a folder of novels as plain text.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
exec nice -n 5 python3 "$here/run.py" "$@"
