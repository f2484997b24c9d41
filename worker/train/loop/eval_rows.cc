#include "worker/train/loop/eval_rows.h"

#include "common/safetensors.h"

namespace lemo::train {

absl::Status WriteEvalRows(const EvalRows& rows, const std::filesystem::path& path) {
  return WriteSafetensorsAtomic(path,
                                {{"loss", ListView(TensorType::kF32, rows.loss)},
                                 {"hit", ListView(TensorType::kU8, rows.hit)},
                                 {"position", ListView(TensorType::kI32, rows.position)},
                                 {"document", ListView(TensorType::kI32, rows.document)}},
                                {});
}

}  // namespace lemo::train
