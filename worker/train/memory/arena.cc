#include "worker/train/memory/arena.h"

#include <ATen/ATen.h>

#include "worker/train/memory/counting_allocator.h"

namespace lemo::train {

Arena::Arena(int64_t capacity_bytes, at::Device device, bool pinned)
    : options_(at::TensorOptions().dtype(at::kByte).device(device).pinned_memory(pinned)),
      buffer_(at::empty({0}, options_)) {
  Reserve(capacity_bytes);
}

void Arena::Reserve(int64_t capacity_bytes) {
  if (capacity_bytes <= capacity_) return;
  const ScopedMemoryCategory category(MemoryCategory::kSavedActivations);
  Release();  // what follows may be refused
  const int64_t rounded = Rounded(capacity_bytes);
  buffer_ = at::empty({rounded}, options_);
  capacity_ = rounded;
}

void Arena::Release() {
  buffer_ = at::empty({0}, options_);
  capacity_ = used_ = 0;
}

at::Tensor Arena::Take(at::IntArrayRef shape, at::ScalarType type) {
  const int64_t bytes =
      c10::multiply_integers(shape) * static_cast<int64_t>(c10::elementSize(type));
  TORCH_CHECK(used_ + bytes <= capacity_, "arena of ", capacity_, " bytes cannot hold ", bytes,
              " more after ", used_);
  at::Tensor slice = buffer_.narrow(0, used_, bytes).view(type).view(shape);
  used_ += Rounded(bytes);
  return slice;
}

}  // namespace lemo::train
