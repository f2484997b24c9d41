// Memory of the device that several processes have once.
#include "worker/train/memory/device_memory.h"

#include <cuda.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstddef>
#include <string>

#include "tests/gpu/check.h"
#include "worker/train/memory/cuda_driver.h"

extern char** environ;

namespace lemo::testing {
namespace {

using train::DeviceMemory;
namespace cuda = train::cuda;

static_assert(sizeof(cuda::Location) == sizeof(CUmemLocation) &&
              offsetof(cuda::Location, id) == offsetof(CUmemLocation, id));
static_assert(sizeof(cuda::AllocationProperties) == sizeof(CUmemAllocationProp) &&
              offsetof(cuda::AllocationProperties, handle_types) ==
                  offsetof(CUmemAllocationProp, requestedHandleTypes) &&
              offsetof(cuda::AllocationProperties, location) ==
                  offsetof(CUmemAllocationProp, location) &&
              offsetof(cuda::AllocationProperties, win32) ==
                  offsetof(CUmemAllocationProp, win32HandleMetaData) &&
              offsetof(cuda::AllocationProperties, flags) ==
                  offsetof(CUmemAllocationProp, allocFlags));
static_assert(sizeof(cuda::Access) == sizeof(CUmemAccessDesc) &&
              offsetof(cuda::Access, flags) == offsetof(CUmemAccessDesc, flags));
static_assert(CU_MEM_LOCATION_TYPE_DEVICE == 1 && CU_MEM_ALLOCATION_TYPE_PINNED == 1 &&
              CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR == 1 &&
              CU_MEM_ACCESS_FLAGS_PROT_READWRITE == 3 && CU_MEM_ALLOC_GRANULARITY_MINIMUM == 0);
static_assert(sizeof(cuda::Pointer) == sizeof(CUdeviceptr) &&
              sizeof(cuda::Handle) == sizeof(CUmemGenericAllocationHandle));

constexpr int64_t kNumbers = 3 << 20;  // no whole number of pages

at::Tensor TensorIn(const DeviceMemory& memory) {
  const auto device = at::Device(at::kCUDA, 0);
  return at::from_blob(
      memory.data(), {kNumbers}, [](void*) {}, at::TensorOptions(at::kFloat).device(device),
      device);
}

at::Tensor Expected() { return at::arange(kNumbers, at::kFloat); }

void Expect(bool holds, const char* what) {
  Report(__FILE__, __LINE__, what, holds ? "" : "is not so");
}

GPU_TEST(MemoryThatProcessesShare) {
  at::zeros({1}, at::TensorOptions(at::kFloat).device(at::kCUDA));  // a context
  Expect(!train::DeviceBusId(0).empty(), "the device has a place");
  auto made = DeviceMemory::Make(0, kNumbers * 4);
  TensorIn(*made).copy_(Expected());
  const int descriptor = made->Export();
  // In this process, and beyond the one that made it.
  auto opened = DeviceMemory::Open(0, kNumbers * 4, descriptor);
  Expect(made->data() != opened->data(), "each mapping has addresses of its own");
  made.reset();
  Expect(at::equal(TensorIn(*opened).cpu(), Expected()), "what was written is there");
  TensorIn(*opened).mul_(2);
  const auto again = DeviceMemory::Open(0, kNumbers * 4, descriptor);
  Expect(at::equal(TensorIn(*again).cpu(), 2 * Expected()), "it is one memory");
  TensorIn(*opened).copy_(Expected());
  // In a process of its own.
  ::fcntl(descriptor, F_SETFD, 0);
  const std::string number = std::to_string(descriptor);
  std::string program = "/proc/self/exe", flag = "--open-memory", argument = number;
  char* arguments[] = {program.data(), flag.data(), argument.data(), nullptr};
  pid_t child = 0;
  Expect(::posix_spawn(&child, program.c_str(), nullptr, nullptr, arguments, environ) == 0,
         "a child starts");
  int status = -1;
  ::waitpid(child, &status, 0);
  Expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child finds what was written");
  ::close(descriptor);
}

}  // namespace

// The child of the test above: 0 where the memory of that descriptor is as it should be.
int OpenMemory(int descriptor) {
  at::zeros({1}, at::TensorOptions(at::kFloat).device(at::kCUDA));
  const auto opened = DeviceMemory::Open(0, kNumbers * 4, descriptor);
  return at::equal(TensorIn(*opened).cpu(), Expected()) ? 0 : 1;
}

}  // namespace lemo::testing
