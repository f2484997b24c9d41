#!/usr/bin/env bash
# ./dev bench engine [ARG...]: see README.md beside this file. Arguments go to run.py.
#
# LEMO_ORACLE_PYTHON: a Python with transformers and PEFT. LEMO_TRAIN: the program to measure.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
root=$(cd "$here/../.." && pwd -P)
[[ -x ${LEMO_ORACLE_PYTHON:-$root/.venv-oracles/bin/python} ]] || "$root/dev" setup oracles
exec python3 "$here/run.py" "$@"
