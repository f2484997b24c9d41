// The documents of a run's data files: read, checked, tokenised once, and mapped.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/violations.h"
#include "lemo/v1/run_spec.pb.h"
#include "text/model_text.h"
#include "worker/train/data/cache.h"
#include "worker/train/data/counts.h"
#include "worker/train/data/documents.h"
#include "worker/train/data/tokenize.h"

namespace lemo::train {

struct DatasetOptions {
  // Longest document in tokens; at least 2, since one token predicts nothing.
  int64_t max_length = 0;
  Overlong overlong = Overlong::kAuto;
  LossOn loss_on = LossOn::kAuto;
  // Where tokenised files are kept; created when absent. Empty: nowhere, they live in unnamed files
  // of the system's folder for such as long as the data set does.
  std::filesystem::path cache_dir;
  // Entries of the model's embedding. A tokenizer may know more names than that, as long as no row
  // uses them. 0: not known, not checked.
  int32_t vocabulary = 0;
  // What the files are called in faults: `data.train` gives data.train[0], ...
  std::string field = "data.train";
};

// One document. Views into the data set.
struct Document {
  std::span<const int32_t> tokens;
  std::span<const uint8_t> trained;  // one entry a token
  int64_t labels = 0;                // positions that carry loss
  int64_t file = 0;                  // index in the list that was opened
  int64_t line = 0;                  // of that file, from 1
};

// Documents in the order of the files and of their rows. Immutable and safe to use from several
// threads. Movable; views stay good.
class Dataset {
 public:
  // All faults of all files are added to `violations`, with field, file and line; when there are
  // any the answer is InvalidArgument with their text. Files are read even when others are faulty.
  // Other errors (cache folder not writable, disk full) carry the path. `counts` is filled as far
  // as reading went.
  static absl::StatusOr<Dataset> Open(const std::vector<lemo::v1::DataFile>& files,
                                      const text::ModelText& text, const DatasetOptions& options,
                                      DataCounts* counts, Violations* violations);

  int64_t rows() const { return starts_.back(); }
  Document row(int64_t i) const;
  // Tokens of row i.
  int64_t length(int64_t i) const;
  const std::string& path(int64_t file) const { return paths_[static_cast<size_t>(file)]; }

  int64_t tokens() const { return counts_.tokens; }
  int64_t labels() const { return counts_.labels; }
  int64_t longest() const { return counts_.longest_document; }
  const DataCounts& counts() const { return counts_; }

 private:
  // The file that holds row i.
  size_t FileOf(int64_t i) const;

  std::vector<TokenCache> caches_;
  std::vector<std::string> paths_;
  std::vector<int64_t> starts_ = {0};  // first row of every file, and the number of rows
  DataCounts counts_;
};

}  // namespace lemo::train
