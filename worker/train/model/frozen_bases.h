// Frozen weights that runs on one machine have once between them.
//
// Several jobs that tune adapters on one base model compute with the very same weights. Where these
// lie as they are needed in the model's files, mapping the files is enough: the kernel has each
// page once. The rest (of another type than the files', or a tensor rank's columns) every run would
// make a copy of its own of. FrozenBases is where it finds them instead.
//
// The interface knows of memory by an address and of weights by an id: where devices have memory of
// their own the address is the device's.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include <ATen/core/Tensor.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/descriptor.h"
#include "worker/train/model/model_split.h"

namespace lemo::train {

// What tells a base from others.
struct BaseKey {
  std::string digest;  // of the content of the model's weights and config
  at::ScalarType type = at::kFloat;
  int rank = 0, ranks = 1;  // of the tensor group: which part it is

  // Letters, digits and `-`: different for whatever differs above, and for each layout of a base.
  std::string Id() const;
};

// Bytes that are there while any copy of the pointer is, and that nobody writes to. Of the device
// that computes.
using BaseMemory = std::shared_ptr<const void>;

class FrozenBases {
 public:
  virtual ~FrozenBases() = default;
  // The memory of a base of `bytes` bytes, aligned to kBaseAlignment at least. `fill` writes it,
  // all of it, where no run has so far. Thread-safe, and so between processes.
  virtual absl::StatusOr<BaseMemory> Map(const BaseKey& key, int64_t bytes,
                                         const std::function<absl::Status(char*)>& fill) = 0;
};

// As the C++ heap and libtorch align tensors: kernels choose the order of their sums by it, and
// sums are to be the same whoever owns the memory.
inline constexpr int64_t kBaseAlignment = 64;

// On a CPU: files of `directory`, mapped shared and read-only (common/shared_files.h). What goes
// wrong is an error of the directory, not of the run.
std::unique_ptr<FrozenBases> MakeFileBases(std::filesystem::path directory);

// Memory that a descriptor stands for.
struct DescribedMemory {
  std::shared_ptr<void> data;
  std::function<absl::StatusOr<Descriptor>()> describe;
};
struct DescribedMemoryOf {
  std::string place;  // letters and digits: memory of two places is never one base
  std::function<absl::StatusOr<DescribedMemory>(int64_t bytes)> make;
  std::function<absl::StatusOr<DescribedMemory>(int64_t bytes, int descriptor)> open;
};
// Runs hand such memory on among themselves, by sockets in `directory`
// (common/handed_descriptor.h); it is gone with the last one that has it.
std::unique_ptr<FrozenBases> MakeHandedBases(std::filesystem::path directory,
                                             DescribedMemoryOf memory);

// That of a CUDA device, which libtorch has been used on. Not run on one yet: tests/gpu has what it
// is made of.
std::unique_ptr<FrozenBases> MakeDeviceBases(std::filesystem::path directory, at::Device device);

}  // namespace lemo::train
