// Scores where blocks are chosen.
#pragma once

#include <ATen/ATen.h>

#include <vector>

namespace lemo::train {

// `scores` of any float type, in order.
inline std::vector<float> OnHost(const at::Tensor& scores) {
  const at::Tensor host = scores.detach().to(at::kCPU, at::kFloat).contiguous();
  return {host.const_data_ptr<float>(), host.const_data_ptr<float>() + host.numel()};
}

}  // namespace lemo::train
