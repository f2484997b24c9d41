#!/usr/bin/env bash
# ./dev bench colocation [ARG...]: see README.md beside this file. Arguments go to colocation.py.
#
# LEMO_TRAIN: the program to measure.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
exec python3 "$here/colocation.py" "$@"
