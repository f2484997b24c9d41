#include "worker/train/memory/arena.h"

#include <ATen/ATen.h>

#include "worker/train/memory/counting_allocator.h"

namespace lemo::train {

Arena::Arena(int64_t capacity_bytes, at::Device device, bool pinned)
    : capacity_(Rounded(capacity_bytes)) {
  const ScopedMemoryCategory category(MemoryCategory::kSavedActivations);
  buffer_ = at::empty({capacity_},
                      at::TensorOptions().dtype(at::kByte).device(device).pinned_memory(pinned));
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
