// What of cuda.h (12 and newer) is used: declared here, so that building needs no CUDA. Functions
// are found in the driver's own library when one is asked for. tests/gpu compares the layouts with
// cuda.h.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lemo::train::cuda {

using Result = int;  // 0: done
using Pointer = uint64_t;
using Handle = uint64_t;  // of physical memory

struct Location {
  int type = 1;  // a device
  int id = 0;    // its number in this process
};

struct AllocationProperties {
  int type = 1;          // pinned, the only kind
  int handle_types = 1;  // a file descriptor
  Location location;
  void* win32 = nullptr;
  struct {
    unsigned char compression = 0, rdma = 0;
    unsigned short usage = 0;
    unsigned char reserved[4] = {};
  } flags;
};

struct Access {
  Location location;
  int flags = 3;  // reads and writes
};

struct Driver {
  Result (*GetErrorString)(Result, const char**);
  Result (*DeviceGet)(int* device, int ordinal);
  Result (*DeviceGetPciBusId)(char* id, int bytes, int device);
  Result (*Granularity)(size_t* bytes, const AllocationProperties*, int option);
  Result (*Create)(Handle*, size_t bytes, const AllocationProperties*, unsigned long long flags);
  Result (*Release)(Handle);
  Result (*Export)(void* shareable, Handle, int type, unsigned long long flags);
  Result (*Import)(Handle*, void* shareable, int type);
  Result (*Reserve)(Pointer*, size_t bytes, size_t alignment, Pointer wanted,
                    unsigned long long flags);
  Result (*Free)(Pointer, size_t bytes);
  Result (*Map)(Pointer, size_t bytes, size_t offset, Handle, unsigned long long flags);
  Result (*Unmap)(Pointer, size_t bytes);
  Result (*SetAccess)(Pointer, size_t bytes, const Access*, size_t count);
};

// Throws c10::Error where there is no driver, or one that lacks a function.
const Driver& LoadDriver();

}  // namespace lemo::train::cuda
