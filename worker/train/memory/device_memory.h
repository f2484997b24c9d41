// Memory of a GPU that a file descriptor stands for, so that several processes can map it: the
// memory is there as long as one of them has it mapped or has a descriptor of it (CUDA's virtual
// memory management, with POSIX file descriptors as handles). What the caching allocator counts
// does not have it.
//
// Needs no CUDA to build, and no other library than libtorch: tests/gpu runs it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace lemo::train {

// Functions throw c10::Error with what the driver says. A context of the device is current in the
// process: libtorch has been used on it.
class DeviceMemory {
 public:
  // New memory of `bytes` bytes or more (the device's granularity), of what value is not said.
  // Begins at a multiple of 2 MiB.
  static std::shared_ptr<DeviceMemory> Make(int device, int64_t bytes);
  // That which `descriptor` stands for, of as many bytes; the descriptor stays the caller's.
  static std::shared_ptr<DeviceMemory> Open(int device, int64_t bytes, int descriptor);
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  // A descriptor that stands for it, the caller's to close.
  int Export() const;
  void* data() const { return reinterpret_cast<void*>(address_); }  // the device's address

 private:
  DeviceMemory(int device, int64_t bytes);
  void Map();

  int device_;
  uint64_t bytes_;
  uint64_t handle_ = 0, address_ = 0;  // 0: none
  bool mapped_ = false;
};

// Tells devices of a machine apart, whatever number they have in a process: "0000:65:00.0".
std::string DeviceBusId(int device);

}  // namespace lemo::train
