// Everything a run reads before a device is touched: the model's config and text files, and the
// data.
#pragma once

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "common/violations.h"
#include "lemo/v1/run_spec.pb.h"
#include "text/model_text.h"
#include "worker/train/data/dataset.h"
#include "worker/train/model/family/decoder_config.h"
#include "worker/train/spec/run_options.h"

namespace lemo::train {

struct Inputs {
  lemo::v1::RunSpec spec;  // effective: what depends on the model is filled in
  DecoderConfig config;
  std::optional<text::ModelText> text;
  std::optional<Dataset> train;  // absent in kEvalOnly
  std::optional<Dataset> eval;   // absent when the spec names no files
};

// Reads the model's config, tokenizer and the headers of its weights and fills in data.max_length
// and train.micro_batch_tokens. Faults are added to `violations`.
void OpenModel(Inputs* inputs, Violations* violations);

// Reads, checks and tokenises the data files. `cache_dir` empty: nothing is kept. After OpenModel
// without violations.
absl::Status OpenData(Inputs* inputs, const std::string& cache_dir, bool want_train,
                      Violations* violations);

// Where a command that makes no result keeps tokenised data: it uses a cache that is there, and
// makes none. Empty for nowhere.
std::string ExistingCache(const lemo::v1::RunSpec& spec);

// OpenModel and OpenData for such a command, and whether the predictor that the spec names fits;
// writes nothing.
absl::Status Validate(const lemo::v1::RunSpec& spec, Inputs* inputs, Violations* violations);

// An error with the field of the spec that it comes from, which it need not name yet.
absl::Status InField(const std::string& field, const absl::Status& status);

}  // namespace lemo::train
