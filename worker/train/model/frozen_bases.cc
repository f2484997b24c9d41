#include "worker/train/model/frozen_bases.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/handed_descriptor.h"
#include "common/shared_files.h"
#include "common/status_macros.h"
#include "worker/train/memory/device_memory.h"

namespace lemo::train {
namespace {

// Of what lies where in a base: to be raised with every change of the layout.
constexpr int kLayout = 1;
// Another run makes it: reads the model, which may come over a network, and writes as much.
constexpr std::chrono::minutes kPatience{30};

class FileBases final : public FrozenBases {
 public:
  explicit FileBases(std::filesystem::path directory) : directory_(std::move(directory)) {}

  absl::StatusOr<BaseMemory> Map(const BaseKey& key, int64_t bytes,
                                 const std::function<absl::Status(char*)>& fill) override {
    absl::StatusOr<std::shared_ptr<const SharedFile>> file =
        MapSharedFile(directory_, key.Id(), bytes, fill, kPatience);
    if (!file.ok()) {
      return absl::Status(file.status().code(),
                          absl::StrCat("model.bases_dir: ", file.status().message()));
    }
    const void* data = (*file)->data();
    return BaseMemory(*std::move(file), data);
  }

 private:
  const std::filesystem::path directory_;
};

class HandedBases final : public FrozenBases {
 public:
  HandedBases(std::filesystem::path directory, DescribedMemoryOf memory)
      : directory_(std::move(directory)), memory_(std::move(memory)) {}

  absl::StatusOr<BaseMemory> Map(const BaseKey& key, int64_t bytes,
                                 const std::function<absl::Status(char*)>& fill) override {
    // The descriptor first, so that it is handed on as long as the memory is there.
    struct Base {
      std::unique_ptr<HandedDescriptor> descriptor;
      std::shared_ptr<void> data;
    };
    const auto base = std::make_shared<Base>();
    const auto make = [&]() -> absl::StatusOr<Descriptor> {
      LEMO_ASSIGN_OR_RETURN(const DescribedMemory made, memory_.make(bytes));
      LEMO_RETURN_IF_ERROR(fill(static_cast<char*>(made.data.get())));
      base->data = made.data;
      return made.describe();
    };
    const auto map = [&]() -> absl::Status {
      LEMO_ASSIGN_OR_RETURN(
          base->descriptor,
          TakeDescriptor(directory_, absl::StrCat(key.Id(), "-", memory_.place), make, kPatience));
      if (base->data != nullptr) return absl::OkStatus();
      LEMO_ASSIGN_OR_RETURN(const DescribedMemory found,
                            memory_.open(bytes, base->descriptor->get()));
      base->data = found.data;
      return absl::OkStatus();
    };
    if (const absl::Status mapped = map(); !mapped.ok()) {
      return absl::Status(mapped.code(), absl::StrCat("model.bases_dir: ", mapped.message()));
    }
    return BaseMemory(base, base->data.get());
  }

 private:
  const std::filesystem::path directory_;
  const DescribedMemoryOf memory_;
};

DescribedMemory Described(const std::shared_ptr<DeviceMemory>& memory, at::Device device) {
  return {.data = std::shared_ptr<void>(memory, memory->data()),
          .describe = [memory, device]() -> absl::StatusOr<Descriptor> {
            // Whoever takes it finds it written.
            c10::impl::VirtualGuardImpl(device.type()).synchronizeDevice(device.index());
            return Descriptor(memory->Export());
          }};
}

}  // namespace

std::string BaseKey::Id() const {
  // The digest first and of its own length: no two keys make one text.
  return Sha256Hex(absl::StrCat(Sha256Hex(digest), " ", c10::toString(type), " ", rank, " of ",
                                ranks, " layout ", kLayout))
      .substr(0, 32);
}

std::unique_ptr<FrozenBases> MakeFileBases(std::filesystem::path directory) {
  return std::make_unique<FileBases>(std::move(directory));
}

std::unique_ptr<FrozenBases> MakeHandedBases(std::filesystem::path directory,
                                             DescribedMemoryOf memory) {
  return std::make_unique<HandedBases>(std::move(directory), std::move(memory));
}

std::unique_ptr<FrozenBases> MakeDeviceBases(std::filesystem::path directory, at::Device device) {
  std::string place = DeviceBusId(device.index());
  std::replace_if(
      place.begin(), place.end(), [](char c) { return c == ':' || c == '.'; }, '-');
  return MakeHandedBases(std::move(directory),
                         {.place = std::move(place),
                          .make =
                              [device](int64_t bytes) {
                                return Described(DeviceMemory::Make(device.index(), bytes), device);
                              },
                          .open =
                              [device](int64_t bytes, int descriptor) {
                                return Described(
                                    DeviceMemory::Open(device.index(), bytes, descriptor), device);
                              }});
}

}  // namespace lemo::train
