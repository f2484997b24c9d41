#include "worker/train/loop/device.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <thread>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace lemo::train {
namespace {

constexpr std::pair<const char*, at::ScalarType> kTypeNames[] = {{"float64", at::kDouble},
                                                                 {"float32", at::kFloat},
                                                                 {"bfloat16", at::kBFloat16},
                                                                 {"float16", at::kHalf}};

// One binary serves both kinds of host: nothing of CUDA is linked, it is loaded when asked for.
absl::Status LoadCuda() {
  for (const char* library : {"libtorch_cuda.so", "liblemo_kernels_cuda.so"}) {
    if (dlopen(library, RTLD_NOW | RTLD_GLOBAL) == nullptr) {
      return absl::FailedPreconditionError(absl::StrCat("CUDA cannot be used: ", dlerror()));
    }
  }
  if (!at::globalContext().hasCUDA()) {
    return absl::FailedPreconditionError("CUDA cannot be used: no device found");
  }
  return absl::OkStatus();
}

absl::StatusOr<at::Device> ChooseDevice(const std::string& name, int node_rank) {
  if (name == "cpu") return at::Device(at::kCPU);
  if (name == "auto" && !LoadCuda().ok()) return at::Device(at::kCPU);
  int index = node_rank;
  const bool numbered = absl::StartsWith(name, "cuda:") &&
                        absl::SimpleAtoi(absl::string_view(name).substr(5), &index) && index >= 0;
  if (name != "cuda" && name != "auto" && !numbered) {
    return absl::InvalidArgumentError(
        absl::StrCat("device: \"", name, "\" is none of auto, cpu, cuda, cuda:N"));
  }
  if (absl::Status status = LoadCuda(); !status.ok()) {
    return absl::FailedPreconditionError(absl::StrCat("device: ", status.message()));
  }
  const int count = c10::impl::VirtualGuardImpl(at::kCUDA).deviceCount();
  if (index >= count) {
    return absl::InvalidArgumentError(
        absl::StrCat("device: cuda:", index, " does not exist; this machine has ", count,
                     numbered ? "" : ", and every rank on it takes one"));
  }
  return at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(index));
}

}  // namespace

absl::StatusOr<Compute> ChooseCompute(const std::string& device, const std::string& type,
                                      int node_rank) {
  absl::StatusOr<at::Device> chosen = ChooseDevice(device, node_rank);
  if (!chosen.ok()) return chosen.status();
  Compute compute;
  compute.device = *chosen;
  const bool cpu = chosen->is_cpu();
  if (type == "auto") {
    const bool amx = __builtin_cpu_supports("amx-bf16") != 0;
    const bool avx = __builtin_cpu_supports("avx512bf16") != 0;
    if (!cpu) {
      compute.type = at::kBFloat16;
      compute.reason = "bfloat16";
    } else if (amx || avx) {
      compute.type = at::kBFloat16;
      compute.reason = absl::StrCat("bfloat16, which this CPU multiplies in hardware (",
                                    amx ? "AMX" : "AVX512-BF16", ")");
    } else {
      compute.type = at::kFloat;
      compute.reason = "float32, since this CPU has no bfloat16 products in hardware";
    }
    return compute;
  }
  for (const auto& [name, scalar] : kTypeNames) {
    if (type != name) continue;
    if (scalar == at::kHalf && cpu) {
      return absl::InvalidArgumentError("model.compute_type: float16 needs a CUDA device");
    }
    if (scalar == at::kDouble && !cpu) {
      return absl::InvalidArgumentError("model.compute_type: float64 runs on a CPU only");
    }
    if (scalar == at::kFloat && !cpu) {
      return absl::InvalidArgumentError(
          "model.compute_type: on CUDA attention runs in bfloat16 or float16 only");
    }
    compute.type = scalar;
    compute.reason = absl::StrCat(name, ", as asked");
    return compute;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "model.compute_type: \"", type, "\" is none of auto, float32, bfloat16, float16, float64"));
}

void ShareCores(int ranks) {
  if (ranks == 1 || std::getenv("OMP_NUM_THREADS") != nullptr) return;
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  at::set_num_threads(std::max(1, cores / ranks));
}

std::string TypeName(at::ScalarType type) {
  for (const auto& [name, scalar] : kTypeNames) {
    if (scalar == type) return name;
  }
  return c10::toString(type);
}

bool PacksKeys(const Compute& compute) {
  return compute.device.is_cpu() && compute.type == at::kBFloat16 &&
         at::native::cpublas::could_pack(compute.type);
}

void Synchronize(at::Device device) {
  if (!device.is_cpu())
    c10::impl::VirtualGuardImpl(device.type()).synchronizeDevice(device.index());
}

namespace {

c10::CachingAllocator::Stat AllocatedBytes(at::Device device) {
  const auto stats = at::getDeviceAllocator(device.type())->getDeviceStats(device.index());
  return stats.allocated_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)];
}

}  // namespace

int64_t DevicePeakBytes(at::Device device) {
  return device.is_cpu() ? 0 : AllocatedBytes(device).peak;
}

int64_t DeviceCurrentBytes(at::Device device) {
  return device.is_cpu() ? 0 : AllocatedBytes(device).current;
}

}  // namespace lemo::train
