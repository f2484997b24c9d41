// One buffer for everything big that a step keeps: the residual stream and the saved boundaries.
//
// It is allocated for the largest micro-batch, before the first step where that is known; a step
// takes slices and gives all of them back at once. So the saved memory of a run is one number, and
// there is no fragmentation. Not thread-safe.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/TensorOptions.h>

#include <cstdint>

namespace lemo::train {

class Arena {
 public:
  // Slices start at multiples of this.
  static constexpr int64_t kAlignment = 64;

  // Bytes that a slice of `bytes` occupies.
  static int64_t Rounded(int64_t bytes) {
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
  }

  // `pinned`: host memory that a device can read directly; only with a CPU device and CUDA loaded.
  Arena(int64_t capacity_bytes, at::Device device, bool pinned = false);

  // An uninitialised tensor that stays valid until Reset. Running past the capacity is a mistake of
  // the caller who sized the arena, and throws.
  at::Tensor Take(at::IntArrayRef shape, at::ScalarType type);

  void Reset() { used_ = 0; }

  // Makes the capacity at least `capacity_bytes`. No slice may be in use: the former buffer is let
  // go before the new one is made.
  void Reserve(int64_t capacity_bytes);

  // Lets the buffer go. No slice may be in use.
  void Release();

  int64_t capacity() const { return capacity_; }
  int64_t used() const { return used_; }

 private:
  at::TensorOptions options_;
  at::Tensor buffer_;
  int64_t capacity_ = 0;
  int64_t used_ = 0;
};

}  // namespace lemo::train
