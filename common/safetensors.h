// The safetensors format: u64 little-endian header length, a JSON header
// {name: {"dtype", "shape", "data_offsets"}, "__metadata__": {string: string}}, then raw bytes.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/files.h"

namespace lemo {

enum class TensorType { kF64, kF32, kF16, kBF16, kI64, kI32, kI16, kI8, kU8, kBool };

// Bytes of one element.
int64_t ElementBytes(TensorType type);
// "F32".
std::string_view TensorTypeName(TensorType type);

// A tensor in a mapped file (or, for writing, in memory of the caller). Row-major, contiguous.
struct TensorView {
  TensorType type = TensorType::kF32;
  std::vector<int64_t> shape;
  std::string_view bytes;
};

// A list as a tensor of one dimension; `values` outlives it.
template <typename T>
TensorView ListView(TensorType type, const std::vector<T>& values) {
  return {type,
          {static_cast<int64_t>(values.size())},
          {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)}};
}

// A memory-mapped file whose header was checked in full on opening: length, JSON, known types,
// shapes without overflow, offsets inside the file, no overlaps, no holes, sizes that match the
// shapes. Every fault is InvalidArgument with the path and the tensor. Views live as long as the
// object.
class SafetensorsFile {
 public:
  static absl::StatusOr<SafetensorsFile> Open(const std::filesystem::path& path);

  const std::map<std::string, TensorView>& tensors() const { return tensors_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  MappedFile file_;
  std::map<std::string, TensorView> tensors_;
  std::map<std::string, std::string> metadata_;
};

// The header check alone, on bytes: what `Open` runs, and what the fuzzer feeds.
absl::Status ParseSafetensors(std::string_view bytes, std::map<std::string, TensorView>* tensors,
                              std::map<std::string, std::string>* metadata);

// Writes all tensors and syncs the file. Largest element first, then by name: the format allows no
// holes, and so every tensor is aligned to its element (the data begin at a multiple of 8). Bytes
// that do not match a shape are InvalidArgument. Not atomic: write beside and rename a directory,
// or use a name nobody reads yet.
absl::Status WriteSafetensors(const std::filesystem::path& path,
                              const std::map<std::string, TensorView>& tensors,
                              const std::map<std::string, std::string>& metadata);

// The same beside `path`, then renamed: afterwards `path` holds either its former contents or all
// of this, and nothing else is left.
absl::Status WriteSafetensorsAtomic(const std::filesystem::path& path,
                                    const std::map<std::string, TensorView>& tensors,
                                    const std::map<std::string, std::string>& metadata);

}  // namespace lemo
