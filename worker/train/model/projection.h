// A linear layer of the base model, plus whatever a tuner adds to it.
//
// Backward replays a stage only to rebuild its autograd graph. The result of the stage's last
// product, and every product whose result was kept, is not needed for that, only its shape is: the
// graph of y = x W^T wants x and W. So each projection can be run for its graph alone, which skips
// its large product and leaves all gradients bit-equal.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>

namespace lemo::train {

// What a projection must produce.
class Output {
 public:
  // The value.
  static Output Compute() { return Output(); }
  // A tensor of the right shape and graph whose value nobody reads.
  static Output Skip() {
    Output output;
    output.skip_ = true;
    return output;
  }
  // `value`, which was computed before, with its graph.
  static Output Known(at::Tensor value) {
    Output output;
    output.value_ = std::move(value);
    return output;
  }

  bool computed() const { return !skip_ && !value_.defined(); }
  bool known() const { return value_.defined(); }
  const at::Tensor& value() const { return value_; }

 private:
  bool skip_ = false;
  at::Tensor value_;
};

// What is the same for all stages of one micro-batch.
struct StageContext {
  // Draws dropout masks; differs from step to step.
  int64_t dropout_seed = 0;
  // The place of each row in the effective batch, int32 [rows]; undefined in evaluation, where
  // nothing drops.
  at::Tensor row_ids;
};

// W x^T [+ bias], recorded for autograd. x [rows, in], weight [out, in], bias [out] or undefined.
// Keeps x only if the weight trains.
at::Tensor LinearGraph(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                       const Output& output);

// a + b, or a known or unread value with the graph of a + b.
at::Tensor AddGraph(const at::Tensor& a, const at::Tensor& b, const Output& output);

struct Projection {
  // What a tuner adds to the output: x [rows, in] -> [rows, out].
  using Branch = std::function<at::Tensor(const at::Tensor& x, const StageContext&, const Output&)>;

  std::string name;   // `model.layers.0.self_attn.q_proj`
  at::Tensor weight;  // [out, in]
  at::Tensor bias;    // [out] or undefined
  // In a tensor group that adds up what its ranks make of their columns, one of them adds the bias.
  bool adds_bias = true;
  Branch branch;  // empty for none

  at::Tensor operator()(const at::Tensor& x, const StageContext& context,
                        const Output& output) const;
};

}  // namespace lemo::train
