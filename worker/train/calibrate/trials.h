// What is timed of a device: each operator of a step at a few sizes, by the very functions that the
// trainer calls.
#pragma once

#include <functional>
#include <vector>

#include "planner/operators.h"
#include "worker/train/loop/device.h"

namespace lemo::train {

struct Trial {
  planner::Operator op = planner::Operator::kProducts;
  double width = 0;
  double size = 1;
  double amount = 0;           // of one go
  std::function<void()> work;  // one go; on a CUDA device it may still run when this returns
};

// They share some hundred MiB of the device, which live as long as any of them. What one writes the
// others may read: the numbers mean nothing.
std::vector<Trial> OperatorTrials(const Compute& compute);

}  // namespace lemo::train
