// What makes a run the run it is, for its output directory and its ranks.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "lemo/v1/run_spec.pb.h"
#include "worker/train/loop/device.h"
#include "worker/train/loop/inputs.h"

namespace lemo::train {

// A JSON object: the spec without what may change between two attempts of one run, or differ
// between its ranks (where things lie, the shape of the gang), and hashes of the content that it
// names. A run goes on wherever the same files lie, on another machine too. Reads all files; errors
// name the field.
absl::StatusOr<std::string> RunIdentity(const Inputs& inputs);

// What has to be the same on all ranks, as a JSON object: `identity`, which one rank of each
// machine makes for it, and this rank's own spec, split, types and versions.
std::string RankFacts(const std::string& identity, const lemo::v1::RunSpec& spec,
                      const Compute& compute);

}  // namespace lemo::train
