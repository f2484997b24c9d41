// The labelled rows of an evaluation, one by one, for studies: `eval.write_rows`.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "absl/status/status.h"

namespace lemo::train {

// One entry a labelled row, in the order of the data.
struct EvalRows {
  std::vector<float> loss;        // nats
  std::vector<uint8_t> hit;       // 1 where the label had the highest logit
  std::vector<int32_t> position;  // in the document, from 0
  std::vector<int32_t> document;  // number in the evaluation, from 0
};

// The file of a run's output directory.
inline constexpr const char* kEvalRows = "eval-rows.safetensors";

// Writes tensors `loss` (F32), `hit` (U8), `position`, `document` (I32), each [rows], whole or not
// at all.
absl::Status WriteEvalRows(const EvalRows& rows, const std::filesystem::path& path);

}  // namespace lemo::train
