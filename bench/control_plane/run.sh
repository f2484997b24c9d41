#!/usr/bin/env bash
# ./dev bench control_plane [--quick] [--parts LIST]: see README.md beside this file.
#
# Expects build/release to be built (./dev bench does so). LEMO_BUILD: another build directory;
# LEMO_TRAIN: another lemo-train.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
build=${LEMO_BUILD:-$root/build/release}
cmake --build "$build" --target lemo-control-plane-bench lemo-coordinator lemo-worker >&2
commit=$(git -C "$root" rev-parse --short=12 HEAD 2>/dev/null || echo none)
[[ -z $(git -C "$root" status --porcelain 2>/dev/null) ]] || commit+=" with changes"
exec "$build/bench/control_plane/lemo-control-plane-bench" \
  --coordinator "$build/coordinator/runtime/lemo-coordinator" \
  --worker "$build/worker/agent/lemo-worker" \
  --train "${LEMO_TRAIN:-$build/worker/train/lemo-train}" \
  --model "$root/examples/models/novelist-3m" \
  --scratch "$root/out/bench" --results "$root/bench/results" \
  --commit "$commit" --command "./dev bench control_plane${*:+ $*}" "$@"
