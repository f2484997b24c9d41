// How many rows of the MLP are computed at a time.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>

namespace lemo::train {

// `wanted`, or for 0 what suits the device. Three tensors of width I live at a time in a tile; more
// rows than this gain no speed.
inline int64_t ChooseTileRows(int64_t wanted, c10::Device device) {
  if (wanted > 0) return wanted;
  return device.is_cpu() ? 1024 : 4096;
}

}  // namespace lemo::train
