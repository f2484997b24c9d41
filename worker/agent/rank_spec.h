// From names that the service knows to paths on this machine, and back.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "google/protobuf/message.h"
#include "lemo/v1/worker_service.pb.h"

namespace lemo::agent {

// Where things are on this machine.
struct LocalPaths {
  std::map<std::string, std::string> files;  // `files/...` -> path
  std::string model;                         // the base model's directory
  std::string out;                           // the run's output directory
  std::string device;                        // `cpu` or `cuda:N`
  std::string bases;                         // of weights that are shared; empty: none are
  std::string predictors;                    // that this machine has trained for its models
  std::string predictor;                     // of another job's result; empty: none is named
};

// The run that a rank is given: every name of the assignment's run replaced by its path, its memory
// bounded by the job's contract, and its frozen weights those of the machine where they can be.
// FailedPrecondition names the field whose name is not among the assignment's files, or the model
// that this machine has not.
absl::StatusOr<lemo::v1::RunSpec> MakeRankSpec(const lemo::v1::Assignment& assignment,
                                               const LocalPaths& paths);

// What each rank of the run may have when its contract is `bytes`: the run's own bound may be less.
int64_t BudgetOf(const lemo::v1::RunSpec& run, int64_t bytes);

// Puts names back in place of paths, in all that a rank says. People who read it know no paths of
// this machine.
class PathNames {
 public:
  PathNames() = default;
  PathNames(const lemo::v1::Assignment& assignment, const LocalPaths& paths);

  std::string Restore(std::string text) const;
  // All strings of a message and of those in it.
  void Restore(google::protobuf::Message* message) const;

 private:
  std::vector<std::pair<std::string, std::string>> names_;  // path -> name, longest path first
};

}  // namespace lemo::agent
