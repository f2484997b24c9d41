// Job specs as people write them.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/violations.h"
#include "lemo/v1/job_spec.pb.h"

namespace lemo::cli {

struct SpecText {
  std::string text;
  std::string file;  // what faults call it; `.json` at its end means JSON, else YAML is tried
};

// Reads a spec file; "-" is the standard input.
absl::StatusOr<SpecText> ReadSpecFile(const std::string& path);

// The spec, with `assignments` (`run.train.steps=10`) put in. All faults go to `violations`, with
// line and nearest field name; what could be read is returned.
//
// A file of lemo-train (`model`, `data`, ... at the top) is taken for `run`. What belongs to the
// service there is dropped with a line in `notes`: output.dir, data.cache_dir, model.bases_dir;
// `device` becomes resources.device.
lemo::v1::JobSpec ParseJobSpec(const SpecText& source, const std::vector<std::string>& assignments,
                               Violations* violations, std::vector<std::string>* notes);

}  // namespace lemo::cli
