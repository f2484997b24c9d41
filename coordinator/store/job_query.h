// The query behind ListJobs: always a walk along an index in the order of the list, never a sort.
#pragma once

#include <string>
#include <vector>

#include "coordinator/store/page_token.h"
#include "coordinator/store/sqlite.h"
#include "coordinator/store/store.h"

namespace lemo::coordinator {

struct JobQuery {
  // Columns: create_ns, number, job.
  std::string sql;
  std::vector<SqlValue> values;  // may point into the filter
};

// Jobs of `filter` after `position` (nullptr: from the start), at most `limit`.
//
// The index is that of what is likely to leave the fewest jobs: the display name, states in which
// only a few jobs are at a time, a label, other states, and for the rest the creation time.
JobQuery BuildJobQuery(const JobFilter& filter, bool newest_first, const PagePosition* position,
                       int limit);

// What page tokens of this list are sealed with.
std::string JobListScope(const JobFilter& filter, bool newest_first);

}  // namespace lemo::coordinator
