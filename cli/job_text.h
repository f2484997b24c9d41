// A job as text.
#pragma once

#include <string>

#include "lemo/v1/job.pb.h"

namespace lemo::cli {

bool IsFinal(lemo::v1::Job::State state);

// "RUNNING". Also of states that this build does not know.
std::string StateName(lemo::v1::Job::State state);

// 0 for SUCCEEDED, 1 for FAILED, 3 for CANCELLED; see cli/errors.h.
int ExitCodeOf(lemo::v1::Job::State final_state);

// "step 12/40  loss 2.9062  16.4k tok/s  412.0 MiB of 2.0 GiB  ETA 0:18"; "" before the first step.
// `memory_limit` in bytes, 0 for none.
std::string ProgressText(const lemo::v1::Progress& progress, int64_t memory_limit);

// The accepted offer in two lines, each behind two blanks.
std::string ContractText(const lemo::v1::Contract& contract);

// What `job get` prints.
std::string JobText(const lemo::v1::Job& job);

// Why it failed and what to do, each line behind two blanks.
std::string FailureText(const lemo::v1::Failure& failure);

// Numbers of a result, each line behind two blanks.
std::string ResultText(const lemo::v1::ResultEvent& result);

// "field: file:line: json_path: reason", without what is empty.
std::string ViolationText(const lemo::v1::Violation& violation);

}  // namespace lemo::cli
