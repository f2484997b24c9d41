// Rows as the model will see them, for people: what `--preview-data` prints.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "text/model_text.h"
#include "worker/train/data/dataset.h"

namespace lemo::train {

struct PreviewOptions {
  int64_t rows = 3;
  // Trained text in colour; otherwise it stands between [[ and ]].
  bool colour = false;
  // Of a longer row only the start is shown, and how much is not.
  int64_t max_tokens = 2048;
};

// The first rows of the data, decoded with their special tokens: a heading (file, line, numbers of
// tokens), then the text with its trained parts marked. Control characters are shown as \xNN.
absl::StatusOr<std::string> PreviewRows(const Dataset& data, const text::ModelText& text,
                                        const PreviewOptions& options);

}  // namespace lemo::train
