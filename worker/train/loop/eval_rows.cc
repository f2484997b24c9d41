#include "worker/train/loop/eval_rows.h"

#include <map>
#include <string>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "common/safetensors.h"
#include "common/status_macros.h"

namespace lemo::train {
namespace {

template <typename T>
TensorView View(TensorType type, const std::vector<T>& values) {
  return {type,
          {static_cast<int64_t>(values.size())},
          {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)}};
}

}  // namespace

absl::Status WriteEvalRows(const EvalRows& rows, const std::filesystem::path& path) {
  std::filesystem::path beside = path;
  beside += ".new";
  LEMO_RETURN_IF_ERROR(WriteSafetensors(beside,
                                        {{"loss", View(TensorType::kF32, rows.loss)},
                                         {"hit", View(TensorType::kU8, rows.hit)},
                                         {"position", View(TensorType::kI32, rows.position)},
                                         {"document", View(TensorType::kI32, rows.document)}},
                                        {}));
  std::error_code error;
  std::filesystem::rename(beside, path, error);
  if (error) return absl::InternalError(absl::StrCat(path.string(), ": ", error.message()));
  return absl::OkStatus();
}

}  // namespace lemo::train
