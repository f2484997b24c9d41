// A list of things wrong with an input, gathered so that a user learns all of them at once.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace lemo {

// One fault. `field` is a path in the run spec (`train.learning_rate`), `file` and `line` (from 1,
// 0 for none) say where in a file, `json_path` where in that line (`messages[2].role`).
struct Violation {
  std::string field;
  std::string reason;
  std::string file;
  int64_t line = 0;
  std::string json_path;

  // "field: file:line: json_path: reason", without the parts that are empty.
  std::string ToString() const;
};

// Faults in the order found. At most `kKept` are kept; `total()` counts all of them.
// Not thread-safe.
class Violations {
 public:
  static constexpr size_t kKept = 50;

  void Add(Violation violation);
  void Add(std::string field, std::string reason);
  // Appends the kept faults of `other` and counts its dropped ones.
  void Append(const Violations& other);

  bool empty() const { return total_ == 0; }
  int64_t total() const { return total_; }
  const std::vector<Violation>& kept() const { return kept_; }

  // OK when empty, else InvalidArgument whose message has one fault a line and, when faults were
  // dropped, a last line "... and N more".
  absl::Status ToStatus() const;

 private:
  std::vector<Violation> kept_;
  int64_t total_ = 0;
};

// Of `candidates`, the name closest to `name` by edit distance, or "" when none is near.
std::string NearestName(const std::string& name, const std::vector<std::string>& candidates);

}  // namespace lemo
