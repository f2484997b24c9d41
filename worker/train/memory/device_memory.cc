#include "worker/train/memory/device_memory.h"

#include <c10/util/Exception.h>
#include <dlfcn.h>

#include <array>
#include <type_traits>

#include "worker/train/memory/cuda_driver.h"

namespace lemo::train {
namespace cuda {

const Driver& LoadDriver() {
  static const Driver driver = [] {
    void* library = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    TORCH_CHECK(library != nullptr, "no CUDA driver: ", ::dlerror());
    Driver found{};
    const auto find = [library](const char* name, auto* function) {
      *function =
          reinterpret_cast<std::remove_reference_t<decltype(*function)>>(::dlsym(library, name));
      TORCH_CHECK(*function != nullptr, "the CUDA driver lacks ", name);
    };
    find("cuGetErrorString", &found.GetErrorString);
    find("cuDeviceGet", &found.DeviceGet);
    find("cuDeviceGetPCIBusId", &found.DeviceGetPciBusId);
    find("cuMemGetAllocationGranularity", &found.Granularity);
    find("cuMemCreate", &found.Create);
    find("cuMemRelease", &found.Release);
    find("cuMemExportToShareableHandle", &found.Export);
    find("cuMemImportFromShareableHandle", &found.Import);
    find("cuMemAddressReserve", &found.Reserve);
    find("cuMemAddressFree", &found.Free);
    find("cuMemMap", &found.Map);
    find("cuMemUnmap", &found.Unmap);
    find("cuMemSetAccess", &found.SetAccess);
    return found;
  }();
  return driver;
}

}  // namespace cuda

namespace {

constexpr int kFileDescriptor = 1;  // CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR

void Check(cuda::Result result, const char* what) {
  if (result == 0) return;
  const char* reason = nullptr;
  cuda::LoadDriver().GetErrorString(result, &reason);
  TORCH_CHECK(false, "shared memory of the device: ", what, ": ",
              reason != nullptr ? reason : "unknown error", " (", result, ")");
}

int DriversDevice(int device) {
  int found = 0;
  Check(cuda::LoadDriver().DeviceGet(&found, device), "find the device");
  return found;
}

cuda::AllocationProperties PropertiesOf(int device) {
  cuda::AllocationProperties properties;
  properties.location.id = device;
  return properties;
}

}  // namespace

DeviceMemory::DeviceMemory(int device, int64_t bytes) : device_(DriversDevice(device)) {
  const cuda::AllocationProperties properties = PropertiesOf(device_);
  size_t unit = 0;
  Check(cuda::LoadDriver().Granularity(&unit, &properties, /*option=*/0), "ask the granularity");
  bytes_ = (static_cast<uint64_t>(bytes) + unit - 1) / unit * unit;
}

std::shared_ptr<DeviceMemory> DeviceMemory::Make(int device, int64_t bytes) {
  std::shared_ptr<DeviceMemory> memory(new DeviceMemory(device, bytes));
  const cuda::AllocationProperties properties = PropertiesOf(memory->device_);
  Check(cuda::LoadDriver().Create(&memory->handle_, memory->bytes_, &properties, /*flags=*/0),
        "allocate");
  memory->Map();
  return memory;
}

std::shared_ptr<DeviceMemory> DeviceMemory::Open(int device, int64_t bytes, int descriptor) {
  std::shared_ptr<DeviceMemory> memory(new DeviceMemory(device, bytes));
  void* const shareable = reinterpret_cast<void*>(static_cast<intptr_t>(descriptor));
  Check(cuda::LoadDriver().Import(&memory->handle_, shareable, kFileDescriptor), "import");
  memory->Map();
  return memory;
}

void DeviceMemory::Map() {
  const cuda::Driver& driver = cuda::LoadDriver();
  Check(driver.Reserve(&address_, bytes_, /*alignment=*/0, /*wanted=*/0, /*flags=*/0),
        "reserve addresses");
  Check(driver.Map(address_, bytes_, /*offset=*/0, handle_, /*flags=*/0), "map");
  mapped_ = true;
  cuda::Access access;
  access.location.id = device_;
  Check(driver.SetAccess(address_, bytes_, &access, 1), "give access");
}

DeviceMemory::~DeviceMemory() {
  const cuda::Driver& driver = cuda::LoadDriver();
  if (mapped_) driver.Unmap(address_, bytes_);
  if (address_ != 0) driver.Free(address_, bytes_);
  if (handle_ != 0) driver.Release(handle_);
}

int DeviceMemory::Export() const {
  int descriptor = -1;
  Check(cuda::LoadDriver().Export(&descriptor, handle_, kFileDescriptor, /*flags=*/0), "export");
  return descriptor;
}

std::string DeviceBusId(int device) {
  std::array<char, 32> id = {};
  Check(cuda::LoadDriver().DeviceGetPciBusId(id.data(), static_cast<int>(id.size()) - 1,
                                             DriversDevice(device)),
        "ask its place");
  return id.data();
}

}  // namespace lemo::train
