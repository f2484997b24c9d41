// ListJobs: order, pages, tokens, filters, and that it walks an index.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "coordinator/store/job_filter.h"
#include "coordinator/store/job_query.h"
#include "coordinator/store/page_token.h"
#include "coordinator/store/sqlite.h"
#include "tests/unit/store/sample_jobs.h"

namespace lemo::coordinator {
namespace {

using lemo::v1::Job;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

std::vector<std::string> Names(const std::vector<Job>& jobs) {
  std::vector<std::string> names;
  for (const Job& job : jobs) names.push_back(job.name());
  return names;
}

// All pages.
std::vector<std::string> ListAll(Store& store, const JobFilter& filter, bool newest_first,
                                 int page_size) {
  std::vector<std::string> names;
  std::string token;
  do {
    const auto page = store.ListJobs(filter, newest_first, page_size, token);
    EXPECT_TRUE(page.ok()) << page.status();
    if (!page.ok()) return names;
    EXPECT_LE(static_cast<int>(page->jobs.size()), page_size);
    for (const std::string& name : Names(page->jobs)) names.push_back(name);
    token = page->next_token;
  } while (!token.empty());
  return names;
}

TEST(ListJobs, PagesStayTrueWhileJobsComeAndChange) {
  const ScratchDir scratch;
  const auto store = MustOpen(scratch / "db");
  for (int i = 1; i <= 5; ++i) ASSERT_TRUE(Put(*store, SampleJob(i)).ok());
  const auto first = store->ListJobs({}, true, 2, "");
  EXPECT_THAT(Names(first->jobs), ElementsAre("jobs/j5", "jobs/j4"));
  for (int i = 6; i <= 9; ++i) ASSERT_TRUE(Put(*store, SampleJob(i)).ok());
  for (int i = 1; i <= 4; ++i) ASSERT_TRUE(Put(*store, SampleJob(i, Job::FAILED)).ok());
  const auto second = store->ListJobs({}, true, 2, first->next_token);
  EXPECT_THAT(Names(second->jobs), ElementsAre("jobs/j3", "jobs/j2"));
  const auto third = store->ListJobs({}, true, 2, second->next_token);
  EXPECT_THAT(Names(third->jobs), ElementsAre("jobs/j1"));
  EXPECT_EQ(third->next_token, "");
  EXPECT_THAT(ListAll(*store, {}, false, 4),
              ElementsAre("jobs/j1", "jobs/j2", "jobs/j3", "jobs/j4", "jobs/j5", "jobs/j6",
                          "jobs/j7", "jobs/j8", "jobs/j9"));
  EXPECT_EQ(store->ListJobs({}, true, 9, "")->next_token, "") << "a full last page is the last";
}

TEST(ListJobs, ATokenOfAnotherListIsRefused) {
  const ScratchDir scratch;
  const auto store = MustOpen(scratch / "db");
  for (int i = 1; i <= 3; ++i) ASSERT_TRUE(Put(*store, SampleJob(i)).ok());
  const std::string token = store->ListJobs({}, true, 1, "")->next_token;
  const auto refused = [](const absl::StatusOr<JobPage>& page) {
    return page.status().code() == absl::StatusCode::kInvalidArgument &&
           std::string(page.status().message()).find("page_token") == 0;
  };
  EXPECT_TRUE(store->ListJobs({}, true, 2, token).ok()) << "the page size may change";
  EXPECT_TRUE(refused(store->ListJobs({}, false, 1, token))) << "order";
  JobFilter filter;
  filter.states = {Job::VALIDATING};
  EXPECT_TRUE(refused(store->ListJobs(filter, true, 1, token))) << "filter";
  EXPECT_FALSE(store->ListFiles(1, token).ok()) << "list";
  const auto other = MustOpen(scratch / "other");
  EXPECT_TRUE(refused(other->ListJobs({}, true, 1, token))) << "store";
  // Every bit of it counts.
  for (size_t i = 0; i < token.size(); ++i) {
    for (const char c : {'A', 'B', 'z', '-', '!'}) {
      std::string changed = token;
      changed[i] = c;
      if (changed != token) {
        EXPECT_TRUE(refused(store->ListJobs({}, true, 1, changed))) << changed;
      }
    }
    EXPECT_TRUE(refused(store->ListJobs({}, true, 1, token.substr(0, i))) || i == 0);
  }
  EXPECT_TRUE(refused(store->ListJobs({}, true, 1, std::string(100'000, 'A'))));
}

TEST(ListJobs, APageEndsEarlyRatherThanOutgrowAMessage) {
  const ScratchDir scratch;
  const auto store = MustOpen(scratch / "db");
  for (int i = 1; i <= 5; ++i) {
    JobRecord record = SampleJob(i);
    record.job.mutable_failure()->set_log_tail(std::string(1 << 20, 'x'));
    ASSERT_TRUE(Put(*store, record).ok());
  }
  const auto page = store->ListJobs({}, true, 1000, "");
  EXPECT_LT(page->jobs.size(), 3);
  EXPECT_EQ(ListAll(*store, {}, true, 1000).size(), 5);
}

// What a filter means, without an index.
bool Matches(const Job& job, const JobFilter& filter) {
  const absl::Time created = absl::FromUnixSeconds(job.create_time().seconds());
  if (!filter.states.empty() &&
      std::count(filter.states.begin(), filter.states.end(), job.state()) == 0) {
    return false;
  }
  for (const auto& [key, value] : filter.labels) {
    const auto found = job.spec().labels().find(key);
    if (found == job.spec().labels().end() || found->second != value) return false;
  }
  return created > filter.created_after && created < filter.created_before &&
         (!filter.display_name || job.spec().display_name() == *filter.display_name);
}

constexpr unsigned kSeed = 20260417;

template <typename T>
T Pick(std::mt19937& random, const std::vector<T>& from) {
  return from[random() % from.size()];
}

JobFilter RandomFilter(std::mt19937& random) {
  JobFilter filter;
  for (int i = static_cast<int>(random() % 4); i > 1; --i) {
    filter.states.push_back(static_cast<Job::State>(1 + random() % 9));
  }
  if (random() % 3 == 0) filter.labels.emplace_back("team", Pick<std::string>(random, {"a", "b"}));
  if (random() % 3 == 0) filter.labels.emplace_back("", Pick<std::string>(random, {"", "team"}));
  if (random() % 4 == 0) filter.display_name = Pick<std::string>(random, {"x", "y"});
  if (random() % 4 == 0) filter.created_after = absl::FromUnixSeconds(random() % 12);
  if (random() % 4 == 0) filter.created_before = absl::FromUnixSeconds(random() % 12);
  return filter;
}

TEST(ListJobs, AgreesWithAPlainSearch) {
  std::printf("seed %u\n", kSeed);
  std::mt19937 random(kSeed);
  const ScratchDir scratch;
  const auto store = MustOpen(scratch / "db");
  std::vector<Job> jobs;
  std::vector<Effect> effects;
  for (int i = 1; i <= 200; ++i) {
    JobRecord record = SampleJob(i, static_cast<Job::State>(1 + random() % 9));
    // Many at the same time, and not in the order of numbers.
    record.job.mutable_create_time()->set_seconds(random() % 12);
    record.job.mutable_spec()->set_display_name(Pick<std::string>(random, {"x", "y", "z"}));
    auto& labels = *record.job.mutable_spec()->mutable_labels();
    if (random() % 2 == 0) labels["team"] = Pick<std::string>(random, {"a", "b", ""});
    if (random() % 2 == 0) labels[""] = Pick<std::string>(random, {"", "team"});
    effects.push_back(Persist{record, {}});
    jobs.push_back(record.job);
  }
  ASSERT_TRUE(store->Apply(effects).ok());
  size_t listed = 0;
  for (int round = 0; round < 400; ++round) {
    const JobFilter filter = RandomFilter(random);
    const bool newest_first = random() % 2 == 0;
    std::vector<Job> expected;
    std::copy_if(jobs.begin(), jobs.end(), std::back_inserter(expected),
                 [&](const Job& job) { return Matches(job, filter); });
    std::stable_sort(expected.begin(), expected.end(), [](const Job& a, const Job& b) {
      return a.create_time().seconds() < b.create_time().seconds();
    });
    if (newest_first) std::reverse(expected.begin(), expected.end());
    listed += expected.size();
    ASSERT_EQ(ListAll(*store, filter, newest_first, 1 + static_cast<int>(random() % 30)),
              Names(expected))
        << "round " << round << ": " << JobListScope(filter, newest_first);
  }
  EXPECT_GT(listed, 2000);
}

// SQLite's plan of the query, one step a line.
std::string Plan(SqlConnection& db, const JobFilter& filter, bool newest_first,
                 const PagePosition* position) {
  const JobQuery query = BuildJobQuery(filter, newest_first, position, 51);
  auto rows = db.PrepareOnce("EXPLAIN QUERY PLAN " + query.sql, query.values);
  EXPECT_TRUE(rows.ok()) << rows.status();
  std::string plan;
  while (rows.ok() && *rows->Step()) absl::StrAppend(&plan, std::string(rows->Bytes(3)), "\n");
  return plan;
}

TEST(ListJobs, WalksAnIndexAndNeverSorts) {
  const ScratchDir scratch;
  { const auto store = MustOpen(scratch / "db"); }
  const auto db = SqlConnection::Open(scratch / "db");
  const PagePosition position{5, 6};
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "jobs_by_create_time (create_ns"},
      {"create_time > \"2026-01-01T00:00:00Z\"", "jobs_by_create_time (create_ns"},
      {"state = RUNNING", "jobs_by_state (state=? AND create_ns"},
      {"state = RUNNING OR state = FAILED OR state = QUEUED", "jobs_by_state (state=? AND create"},
      {"state = RUNNING AND labels.a = b", "jobs_by_state (state=? AND create_ns"},
      {"state = FAILED AND labels.a = b AND labels.c = d", "PRIMARY KEY (key=? AND value=? AND"},
      {"display_name = x AND labels.a = b", "jobs_by_display_name (display_name=? AND create_ns"},
  };
  for (const auto& [text, index] : cases) {
    const auto filter = ParseJobFilter(text);
    ASSERT_TRUE(filter.ok()) << filter.status();
    for (const bool newest_first : {false, true}) {
      for (const PagePosition* from : {static_cast<const PagePosition*>(nullptr), &position}) {
        const std::string plan = Plan(**db, *filter, newest_first, from);
        EXPECT_THAT(plan, HasSubstr(index)) << text;
        EXPECT_THAT(plan, Not(HasSubstr("TEMP B-TREE"))) << text;
        EXPECT_THAT(plan, Not(HasSubstr("SCAN jobs"))) << text;
        EXPECT_THAT(plan, Not(HasSubstr("SCAN labels"))) << text;
      }
    }
  }
}

TEST(PageToken, KeepsExtremePlaces) {
  for (const int64_t value : {std::numeric_limits<int64_t>::min(), int64_t{-1}, int64_t{0},
                              int64_t{255}, std::numeric_limits<int64_t>::max()}) {
    const auto back =
        DecodePageToken("key", "scope", EncodePageToken("key", "scope", {value, ~value}));
    ASSERT_TRUE(back.ok());
    EXPECT_EQ(back->time_ns, value);
    EXPECT_EQ(back->number, ~value);
  }
}

}  // namespace
}  // namespace lemo::coordinator
