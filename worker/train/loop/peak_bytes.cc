#include "worker/train/loop/peak_bytes.h"

#include <ATen/ATen.h>

#include "worker/train/loop/device.h"
#include "worker/train/memory/counting_allocator.h"

namespace lemo::train {

lemo::v1::PeakBytes PeakBytesOf(at::Device device) {
  lemo::v1::PeakBytes peak;
  if (!device.is_cpu()) {
    peak.set_total(DevicePeakBytes(device));
    return peak;
  }
  const MemoryUsage usage = PeakMemory();
  peak.set_weights(usage[MemoryCategory::kWeights]);
  peak.set_trainable(usage[MemoryCategory::kTrainable]);
  peak.set_saved_activations(usage[MemoryCategory::kSavedActivations]);
  peak.set_transient(usage[MemoryCategory::kTransient]);
  peak.set_loss(usage[MemoryCategory::kLoss]);
  peak.set_total(usage.total);
  return peak;
}

void ResetPeakBytes(at::Device device) {
  if (device.is_cpu()) {
    ResetPeakMemory();
  } else {
    at::getDeviceAllocator(device.type())->resetPeakStats(device.index());
  }
}

}  // namespace lemo::train
