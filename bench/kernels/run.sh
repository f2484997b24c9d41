#!/usr/bin/env bash
# ./dev bench kernels [ARG...]: see README.md beside this file. Arguments go to Google Benchmark.
#
# Expects build/release to be configured (./dev build).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
cmake --build "$root/build/release" --target lemo_kernels_bench
exec "$root/build/release/bench/kernels/lemo_kernels_bench" \
  --benchmark_repetitions=5 --benchmark_report_aggregates_only=true "$@"
