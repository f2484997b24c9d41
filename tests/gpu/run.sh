#!/bin/sh
# Builds and runs the CUDA versions' tests on a host with a CUDA device. Needs: nvcc (CUDA_HOME, default
# /usr/local/cuda), a python with torch (PYTHON, default python3), cmake, ninja, g++ 12 or newer.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
build=${1:-$here/../../build/gpu-test}
CUDA_HOME=${CUDA_HOME:-/usr/local/cuda}
export CUDA_HOME
python=${PYTHON:-python3}

for tool in cmake ninja "$python" "$CUDA_HOME/bin/nvcc"; do
  command -v "$tool" >/dev/null || { echo "run.sh: $tool is missing" >&2; exit 2; }
done
site=$("$python" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])')
architecture=$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')
case $architecture in
  90) architecture=90a ;;
esac

cmake -G Ninja -S "$here" -B "$build" -DCMAKE_BUILD_TYPE=Release \
  -DLEMO_SITE_PACKAGES="$site" -DLEMO_CUDA_ARCHITECTURES="$architecture"
ninja -C "$build" kernels_gpu_test
exec "$build/kernels_gpu_test"
