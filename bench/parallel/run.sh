#!/usr/bin/env bash
# ./dev bench parallel [ARG...]: see README.md beside this file. Arguments go to parallel.py.
#
# LEMO_TRAIN: the program to measure. LEMO_ORACLE_PYTHON, with --peer: a Python with transformers and PEFT.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
root=$(cd "$here/../.." && pwd -P)
if [[ " $* " == *" --peer "* ]]; then
  [[ -x ${LEMO_ORACLE_PYTHON:-$root/.venv-oracles/bin/python} ]] || "$root/dev" setup oracles
fi
exec python3 "$here/parallel.py" "$@"
