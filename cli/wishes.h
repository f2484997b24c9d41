// The flags that say which offer a job should take, the same for `lemo plan` and `lemo job submit`.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cli/context.h"
#include "lemo/v1/job_spec.pb.h"

namespace lemo::cli {

struct WishFlags {
  std::string offer, prefer;
  int64_t max_memory_bytes = 0;
  std::string finish_by;
  double min_keep = 0, max_device_hours = 0;
  std::vector<int> ranks;
  std::vector<double> keep;
};

// `flags` outlives the command.
void AddWishFlags(CLI::App* command, WishFlags* flags);

// Puts what was given into spec->plan, over what the file says there; without any flag nothing
// changes. INVALID_ARGUMENT when a time is none.
absl::Status ApplyWishes(const WishFlags& flags, lemo::v1::JobSpec* spec);

// The spec of a file with `assignments` and then wishes put in, its local inputs looked at. All
// faults together are INVALID_ARGUMENT.
absl::StatusOr<lemo::v1::JobSpec> LoadJobSpec(Context& context, const std::string& file,
                                              const std::vector<std::string>& assignments,
                                              const WishFlags& wishes);

}  // namespace lemo::cli
