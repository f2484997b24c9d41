// The frozen tensors of a model: read from its directory, or drawn from a seed.
//
// Functions here let libtorch's own exceptions pass (out of memory); every fault of a file is a
// status.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/train/model/family/decoder_config.h"
#include "worker/train/model/frozen_bases.h"
#include "worker/train/model/model_split.h"

namespace lemo::train {

// Tensors by Hugging Face name, exactly those of ExpectedTensors, all of one type on one device,
// none with gradients. Copies share storage. A tensor that was not converted lies in the read-only
// mapping of its file, and one of a shared base in that of the base; either lives as long as any
// tensor in it. Writing to such a tensor ends the process, so clone what is to be trained.
class ModelWeights {
 public:
  using Map = std::map<std::string, at::Tensor, std::less<>>;

  // `mapped_bytes` of the tensors lie in mapped files, or in a shared base.
  ModelWeights(Map tensors, at::ScalarType type, at::Device device, int64_t mapped_bytes,
               std::vector<std::string> warnings);

  // Throws std::out_of_range for a name that the model does not have: a mistake of the caller.
  const at::Tensor& at(std::string_view name) const;
  const Map& tensors() const { return tensors_; }
  at::ScalarType type() const { return type_; }
  at::Device device() const { return device_; }

  // Bytes in mapped files and shared bases, which all processes that map them have once, and bytes
  // in memory of our own (the device's, when it is not the CPU).
  int64_t MappedBytes() const { return mapped_bytes_; }
  int64_t OwnedBytes() const { return owned_bytes_; }

  // What loading passed over: tensors that the model has no place for, a head that differs from the
  // embedding it is tied to. One sentence each.
  const std::vector<std::string>& warnings() const { return warnings_; }

 private:
  Map tensors_;
  at::ScalarType type_;
  at::Device device_;
  int64_t mapped_bytes_ = 0;
  int64_t owned_bytes_ = 0;
  std::vector<std::string> warnings_;
};

// Where weights that cannot be used as they lie in the model's files are found, or put, for others.
struct BaseSharing {
  FrozenBases* bases = nullptr;
  std::string digest;  // of this model's weights: BaseKey::digest
};

// Reads `model.safetensors`, or the shards that `model.safetensors.index.json` names (files of that
// very directory). Tensors of type F32, BF16 or F16 become `type` on `device`; those that have the
// type already are not copied on the CPU. Converting takes one tensor's memory on top.
// A name that begins with `decoder.`, from a file saved without the head, gets its `model.` back.
// InvalidArgument, with all of them and what was expected and found, for absent, misshapen or
// mistyped tensors and absent shards; NotFound for a directory without safetensors, and the message
// says so where it holds pickles.
//
// `config` is that of the whole model. With `split` this rank's part of every tensor is read, and
// nothing else of it: rows lie in the mapping like whole tensors, columns are copied.
//
// With `sharing`, whatever would be converted or copied lies in a base that all who load the same
// have once; the values, and the alignment of every tensor, are those without it.
absl::StatusOr<ModelWeights> LoadWeights(const std::filesystem::path& model_dir,
                                         const DecoderConfig& config, at::ScalarType type,
                                         at::Device device, const ModelSplit* split = nullptr,
                                         const BaseSharing* sharing = nullptr);

// The faults that LoadWeights would find, from the headers of the files alone.
absl::Status CheckWeights(const std::filesystem::path& model_dir, const DecoderConfig& config);

// Matrices and embeddings normal(0, config.initializer_range), norms 1, biases 0. The values,
// rounded to `type`, depend on the seed, the tensor's name and the place in it alone. `split` as in
// LoadWeights.
ModelWeights RandomWeights(const DecoderConfig& config, uint64_t seed, at::ScalarType type,
                           at::Device device, const ModelSplit* split = nullptr);

// SHA-256 (hex) over config.json, the index, and the name, header and size of every weight file.
// Cheap for any size of model, and it tells apart other models, shapes, types, layouts and configs;
// it does not see a change of values inside files of the same layout.
absl::StatusOr<std::string> WeightsFingerprint(const std::filesystem::path& model_dir);

}  // namespace lemo::train
