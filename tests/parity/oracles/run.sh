#!/usr/bin/env bash
# ./dev oracles: records the oracle results anew, compares them with those in the tree, and lets
# transformers and PEFT check what lemo-train computes and publishes. Arguments go to check_adapter.py.
#
#   run.sh --record   replaces the recorded results instead
#
# LEMO_ORACLE_PYTHON: a Python with transformers and PEFT. LEMO_TRAIN: the program to check.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
root=$(cd "$here/../../.." && pwd -P)
python=${LEMO_ORACLE_PYTHON:-$root/.venv-oracles/bin/python}
lemo_train=${LEMO_TRAIN:-$root/build/release/worker/train/lemo-train}

[[ -x $python ]] || { echo "oracles: no $python; run: ./dev setup oracles" >&2; exit 2; }

if [[ ${1:-} == --record ]]; then
  fresh=$(mktemp -d "$here/recording.XXXXXX")
  trap 'rm -rf "$fresh"' EXIT
  "$python" "$here/record.py" "$fresh"
  chmod -R u=rwX,go=rX "$fresh"
  rm -rf "$here/recorded"
  mv "$fresh" "$here/recorded"
  exit
fi

[[ -x $lemo_train ]] || { echo "oracles: no $lemo_train; run: ./dev build" >&2; exit 2; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$python" "$here/record.py" "$scratch/recorded"
# All comparisons run, whatever the first one says.
status=0
"$python" "$here/compare.py" "$here/recorded" "$scratch/recorded" || status=1
"$python" "$here/check_adapter.py" --lemo-train "$lemo_train" "$@" || status=1
"$python" "$here/check_opt.py" --lemo-train "$lemo_train" || status=1
"$python" "$here/check_selection.py" --lemo-train "$lemo_train" || status=1
exit $status
