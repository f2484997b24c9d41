#include "coordinator/store/job_query.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "coordinator/store/job_row.h"

namespace lemo::coordinator {
namespace {

constexpr int64_t kLeast = std::numeric_limits<int64_t>::min();
constexpr int64_t kMost = std::numeric_limits<int64_t>::max();

// Open ends of the walk.
struct Range {
  PagePosition lower{kLeast, kLeast};
  PagePosition upper{kMost, kMost};
};

Range RangeOf(const JobFilter& filter, bool newest_first, const PagePosition* position) {
  Range range;
  range.lower = {ToNanoseconds(filter.created_after), kMost};
  if (filter.created_after == absl::InfinitePast()) range.lower.number = kLeast;
  range.upper = {ToNanoseconds(filter.created_before), kLeast};
  if (filter.created_before == absl::InfiniteFuture()) range.upper.number = kMost;
  // A position lies within the range, so it takes the place of one end.
  if (position != nullptr) (newest_first ? range.upper : range.lower) = *position;
  return range;
}

class Builder {
 public:
  Builder(const JobFilter& filter, const Range& range) : filter_(filter), range_(range) {}

  // One walk; with a state, of jobs in that state only.
  void Walk(bool by_label, const lemo::v1::Job::State* state) {
    const char* table = "jobs";
    const char* number = "number";
    size_t label = 0;
    if (by_label) {
      sql_ +=
          "SELECT labels.create_ns AS t, labels.job AS n, jobs.job AS j "
          "FROM labels CROSS JOIN jobs ON jobs.number = labels.job "
          "WHERE labels.key = ? AND labels.value = ?";
      values_.emplace_back(filter_.labels[0].first);
      values_.emplace_back(filter_.labels[0].second);
      table = "labels";
      number = "job";
      label = 1;
    } else {
      absl::StrAppend(&sql_,
                      "SELECT jobs.create_ns AS t, jobs.number AS n, jobs.job AS j "
                      "FROM jobs INDEXED BY ",
                      filter_.display_name ? "jobs_by_display_name"
                      : state != nullptr   ? "jobs_by_state"
                                           : "jobs_by_create_time",
                      " WHERE 1");
    }
    absl::StrAppend(&sql_, " AND (", table, ".create_ns, ", table, ".", number, ") > (?, ?) AND (",
                    table, ".create_ns, ", table, ".", number, ") < (?, ?)");
    for (const int64_t end :
         {range_.lower.time_ns, range_.lower.number, range_.upper.time_ns, range_.upper.number}) {
      values_.emplace_back(end);
    }
    if (filter_.display_name) {
      sql_ += " AND jobs.display_name = ?";
      values_.emplace_back(*filter_.display_name);
    }
    if (state != nullptr) {
      sql_ += " AND jobs.state = ?";
      values_.emplace_back(int64_t{*state});
    } else if (!filter_.states.empty()) {
      // The plus keeps this from being taken for a reason to use another index.
      absl::StrAppend(&sql_, " AND +jobs.state IN (",
                      absl::StrJoin(filter_.states, ", ", AppendState), ")");
    }
    // Asked of the table that is walked, so that a job is looked up only when all labels fit.
    for (; label < filter_.labels.size(); ++label) {
      absl::StrAppend(&sql_,
                      " AND EXISTS (SELECT 1 FROM labels AS other WHERE other.key = ? AND "
                      "other.value = ? AND other.create_ns = ",
                      table, ".create_ns AND other.job = ", table, ".", number, ")");
      values_.emplace_back(filter_.labels[label].first);
      values_.emplace_back(filter_.labels[label].second);
    }
  }

  void Union() { sql_ += " UNION ALL "; }

  JobQuery Finish(bool newest_first, int limit) && {
    sql_ += newest_first ? " ORDER BY t DESC, n DESC LIMIT ?" : " ORDER BY t, n LIMIT ?";
    values_.emplace_back(int64_t{limit});
    return {std::move(sql_), std::move(values_)};
  }

 private:
  static void AppendState(std::string* out, lemo::v1::Job::State state) {
    absl::StrAppend(out, static_cast<int>(state));
  }

  const JobFilter& filter_;
  const Range range_;
  std::string sql_;
  std::vector<SqlValue> values_;
};

}  // namespace

JobQuery BuildJobQuery(const JobFilter& filter, bool newest_first, const PagePosition* position,
                       int limit) {
  Builder builder(filter, RangeOf(filter, newest_first, position));
  const bool few =
      !filter.states.empty() && std::none_of(filter.states.begin(), filter.states.end(), HasEnded);
  const bool by_label = !filter.display_name && !filter.labels.empty() && !few;
  if (filter.display_name || by_label || filter.states.empty()) {
    builder.Walk(by_label, nullptr);
    return std::move(builder).Finish(newest_first, limit);
  }
  // One walk for each state, merged in order: a single walk over several would need a sort.
  std::vector<lemo::v1::Job::State> states = filter.states;
  std::sort(states.begin(), states.end());
  states.erase(std::unique(states.begin(), states.end()), states.end());
  for (size_t i = 0; i < states.size(); ++i) {
    if (i > 0) builder.Union();
    builder.Walk(/*by_label=*/false, &states[i]);
  }
  return std::move(builder).Finish(newest_first, limit);
}

std::string JobListScope(const JobFilter& filter, bool newest_first) {
  // Lengths before texts: no two filters give the same.
  std::string scope = absl::StrCat("jobs ", newest_first, " ", ToNanoseconds(filter.created_after),
                                   " ", ToNanoseconds(filter.created_before));
  for (const auto state : filter.states) absl::StrAppend(&scope, " s", static_cast<int>(state));
  const auto append = [&scope](char kind, const std::string& text) {
    absl::StrAppend(&scope, " ", std::string(1, kind), text.size(), ":", text);
  };
  for (const auto& [key, value] : filter.labels) {
    append('k', key);
    append('v', value);
  }
  if (filter.display_name) append('d', *filter.display_name);
  return scope;
}

}  // namespace lemo::coordinator
