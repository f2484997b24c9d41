#include "worker/train/model/frozen_bases.h"

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/shared_files.h"

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

}  // namespace lemo::train
