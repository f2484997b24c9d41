// What this machine offers.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "lemo/v1/cluster_service.pb.h"

namespace lemo::agent {

// A device as the coordinator sees it (`info.index` is its place in the agent's list), and as
// lemo-train is told: `cpu` or `cuda:N`.
struct LocalDevice {
  lemo::v1::Device info;
  std::string train_name;
};

// CPU devices first, each with an equal share of `cpu_memory_bytes` and of the cores
// (ThreadsOfCpu), then CUDA devices, whose jobs share frozen weights if `cuda_bases`. Runs
// nvidia-smi when `cuda` is set and the program exists.
std::vector<LocalDevice> ListDevices(int cpu_devices, bool cuda, int64_t cpu_memory_bytes,
                                     bool cuda_bases = false);

// That a rank alone on one of so many CPU devices computes with: OMP_NUM_THREADS, else its share of
// the cores.
int ThreadsOfCpu(int cpu_devices);

// What `nvidia-smi --query-gpu=index,name,memory.total --format=csv,noheader,nounits` prints, as
// devices from list index `first` on. Lines that are not understood are InvalidArgument.
absl::StatusOr<std::vector<LocalDevice>> ParseNvidiaSmi(std::string_view text, int first);

// Memory of the host in bytes.
int64_t HostMemoryBytes();

// Directories with a config.json at or under the roots, three levels deep at most, sorted; 4096 at
// most.
std::vector<std::string> FindModels(const std::vector<std::filesystem::path>& roots);

}  // namespace lemo::agent
