// Tuners: which parameters exist and train, and how they join the model.
//
// A tuner answers with the ordered list of trainable tensors; everything else of the model stays
// frozen and bit-equal. It never touches the tape: what it adds to a projection is ordinary
// autograd inside a stage (rule G1 of the method cards).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "lemo/v1/run_spec.pb.h"
#include "worker/train/model/decoder.h"
#include "worker/train/parallel/shards.h"

namespace lemo::train {

// One tensor that trains. All three tensors have one shape.
struct Trainable {
  std::string name;   // Hugging Face's name, or PEFT's key for an adapter tensor
  int64_t layer = 0;  // -1 the embedding, `layers` the head
  Stage stage = Stage::kQkv;
  bool decay = true;  // false for norms and biases
  at::Tensor master;  // what the optimizer updates; fp32 (fp64 in fp64 runs)
  at::Tensor
      value;  // the leaf that the stages read, in the compute type; shares `master` if of one type
  at::Tensor grad;  // sum over the micro-batches of a step, like `master`
  // Of a whole tensor (dim -1) each rank of a tensor group has a part of the gradient, which are
  // added up before it is used; of a cut one the gradient is complete where it is, on each of the
  // ranks that have copies of it.
  Shard shard;
  std::vector<int64_t> shape() const { return value.sizes().vec(); }
};

using Trainables = std::vector<Trainable>;

// Of the tensor that the ranks of a tensor group have together.
std::vector<int64_t> WholeShape(const Trainable& trainable);

// Copies every master into its value, where they are not one tensor. Call after masters changed.
void RefreshValues(Trainables& trainables);
void ZeroGradients(Trainables& trainables);
// Of the whole tensors.
int64_t CountParameters(const Trainables& trainables);

class Tuner {
 public:
  virtual ~Tuner() = default;

  // `lora`, `full`.
  virtual std::string kind() const = 0;

  // Makes the trainable tensors and hooks them into `decoder`, which must live as long as they are
  // used. Call once. Initial values depend on `seed` and the tensors' names only. InvalidArgument
  // names the field of the spec.
  virtual absl::StatusOr<Trainables> Attach(Decoder& decoder, uint64_t seed) = 0;
};

// The tuner that the spec's oneof names; defaults filled in.
absl::StatusOr<std::unique_ptr<Tuner>> MakeTuner(const lemo::v1::TunerSpec& spec);

}  // namespace lemo::train
