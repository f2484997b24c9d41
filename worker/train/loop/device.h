// Which device a run uses and in which type it computes.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "absl/status/statusor.h"

namespace lemo::train {

struct Compute {
  at::Device device = at::kCPU;
  at::ScalarType type = at::kFloat;
  std::string
      reason;  // for a person: "bfloat16, which this CPU multiplies in hardware (AVX512-BF16)"
};

// `device`: auto, cpu, cuda, cuda:N. `type`: auto, float32, bfloat16, float16, float64. Loads
// libtorch_cuda and our CUDA kernels when a CUDA device is asked for (or, for auto, when they and a
// device are there). InvalidArgument names the field; FailedPrecondition says what is missing for
// CUDA.
//
// auto on a CPU: bfloat16 with AVX512-BF16 or AMX, else float32. Without these instructions
// bfloat16 products run several hundred times slower than float32.
//
// Of the CUDA devices that auto and cuda do not tell apart, rank `node_rank` of this machine takes
// its own; FailedPrecondition when there are fewer devices than ranks.
absl::StatusOr<Compute> ChooseCompute(const std::string& device, const std::string& type,
                                      int node_rank = 0);

// Ranks of one machine, of which there are so many, divide its cores, unless the environment says
// how many threads to use.
void ShareCores(int ranks);

// `float32`, as the spec spells it.
std::string TypeName(at::ScalarType type);

// Whether attention packs keys and values for a CPU's matrix units, in memory of its own:
// libtorch's kernel does in bfloat16 where there is AMX.
bool PacksKeys(const Compute& compute);

// Waits until the device has done everything it was given.
void Synchronize(at::Device device);

// Peak bytes of the device's allocator so far; 0 on a CPU, where the counting allocator knows.
int64_t DevicePeakBytes(at::Device device);
// What it has given out now; likewise.
int64_t DeviceCurrentBytes(at::Device device);

}  // namespace lemo::train
