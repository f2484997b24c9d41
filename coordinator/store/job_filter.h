// The texts with which ListJobs is asked.
//
//   filter = term { "AND" term }
//   term   = "state" "=" state { "OR" "state" "=" state }
//          | "display_name" "=" value
//          | "labels." key "=" value
//          | "create_time" ( ">" | ">=" | "<" | "<=" ) time
//
// A state is a name of Job.State (`RUNNING`), a time is RFC 3339 with its zone
// (`"2026-01-01T00:00:00Z"`). Keys and values may be quoted; in quotes `\"` and `\\` stand for `"`
// and `\`. As in AIP-160, OR binds tighter than AND.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "coordinator/store/store.h"

namespace lemo::coordinator {

// An empty filter takes all jobs. INVALID_ARGUMENT names the term, its place and what was expected.
absl::StatusOr<JobFilter> ParseJobFilter(const std::string& text);

// Whether the newest job comes first: `create_time desc` and "", or `create_time` (also with
// `asc`). INVALID_ARGUMENT for any other text.
absl::StatusOr<bool> ParseJobOrder(const std::string& text);

}  // namespace lemo::coordinator
