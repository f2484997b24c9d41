// Runs every GPU_TEST after loading the CUDA versions the way the trainer does. Exit code 1 on a
// failure.
// --load-only stops after loading, which needs no device.
#include <ATen/Context.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cstdlib>
#include <cstring>

#include "tests/gpu/check.h"

namespace lemo::testing {
namespace {

bool LoadLibrary(const char* path) {
  if (dlopen(path, RTLD_NOW | RTLD_GLOBAL) != nullptr) return true;
  std::cerr << "cannot load " << path << ": " << dlerror() << "\n";
  return false;
}

bool AllRegistered() {
  bool all = true;
  for (const char* name :
       {"rms_norm", "rms_norm_backward", "gather_rows", "scatter_add_rows_", "rope", "swiglu",
        "swiglu_backward", "cross_entropy_", "dropout", "gather_rms_norm", "block_scores",
        "block_mean_max", "block_mean_max_backward", "block_informativeness",
        "block_informativeness_backward", "select_top_blocks", "rows_of_blocks"}) {
    const auto op = c10::Dispatcher::singleton().findSchema({std::string("lemo::") + name, ""});
    if (op.has_value() && op->hasKernelForDispatchKey(c10::DispatchKey::CUDA)) continue;
    std::cerr << "lemo::" << name << " has no CUDA version\n";
    all = false;
  }
  return all;
}

}  // namespace

// What the test of memory that processes share starts (device_memory_test.cc).
int OpenMemory(int descriptor);

bool HasFreeMemory(int64_t bytes, const char* test) {
  size_t free = 0;
  size_t total = 0;
  if (cudaMemGetInfo(&free, &total) == cudaSuccess && static_cast<int64_t>(free) >= bytes)
    return true;
  std::cout << "  " << test << " left out: needs " << (bytes >> 30)
            << " GiB of free device memory\n";
  return false;
}

int Main(bool load_only) {
  if (!load_only && !LoadLibrary("libtorch_cuda.so")) return 1;
  if (!LoadLibrary(LEMO_KERNELS_CUDA_LIBRARY) || !AllRegistered()) return 1;
  if (load_only) {
    std::cout << "the CUDA versions load and are registered; nothing was run\n";
    return 0;
  }
  if (!at::hasCUDA()) {
    std::cerr << "no CUDA device\n";
    return 1;
  }
  const at::NoGradGuard no_grad;
  for (const GpuTest& test : GpuTests()) {
    const int before = Failures();
    std::cout << test.name << std::endl;
    try {
      test.body();
      const cudaError_t error = cudaDeviceSynchronize();
      Report(__FILE__, __LINE__, test.name, error == cudaSuccess ? "" : cudaGetErrorString(error));
    } catch (const std::exception& error) {
      Report(__FILE__, __LINE__, test.name, error.what());
    }
    std::cout << (Failures() == before ? "  ok\n" : "  FAILED\n");
  }
  std::cout << GpuTests().size() << " tests, " << Failures() << " failures\n";
  return Failures() == 0 ? 0 : 1;
}

}  // namespace lemo::testing

int main(int argc, char** argv) {
  if (argc == 3 && std::strcmp(argv[1], "--open-memory") == 0) {
    return lemo::testing::OpenMemory(std::atoi(argv[2]));
  }
  return lemo::testing::Main(argc > 1 && std::strcmp(argv[1], "--load-only") == 0);
}
