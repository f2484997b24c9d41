#!/usr/bin/env bash
# ./dev bench one_long_row [ARG...]: see README.md beside this file. Arguments go to one_long_row.py.
#
# LEMO_TRAIN: the program to measure. LEMO_ORACLE_PYTHON: a Python with transformers and PEFT.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
root=$(cd "$here/../.." && pwd -P)
[[ -x ${LEMO_ORACLE_PYTHON:-$root/.venv-oracles/bin/python} ]] || "$root/dev" setup oracles
exec python3 "$here/one_long_row.py" "$@"
