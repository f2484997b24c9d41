// Filter and order texts of ListJobs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coordinator/store/job_filter.h"

namespace lemo::coordinator {
namespace {

using lemo::v1::Job;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Pair;

JobFilter Parsed(const std::string& text) {
  const auto filter = ParseJobFilter(text);
  EXPECT_TRUE(filter.ok()) << text << ": " << filter.status();
  return filter.ok() ? *filter : JobFilter();
}

TEST(JobFilter, TakesTheTermsOfTheContract) {
  const JobFilter filter = Parsed(
      "state = RUNNING AND labels.team = \"nlp\" AND create_time > \"2026-01-01T00:00:00Z\"");
  EXPECT_THAT(filter.states, ElementsAre(Job::RUNNING));
  EXPECT_THAT(filter.labels, ElementsAre(Pair("team", "nlp")));
  EXPECT_EQ(filter.created_after, absl::FromUnixSeconds(1767225600));
  EXPECT_EQ(filter.created_before, absl::InfiniteFuture());
  EXPECT_EQ(filter.display_name, std::nullopt);
}

TEST(JobFilter, EmptyTakesAll) {
  for (const char* text : {"", "  \n"}) {
    const JobFilter filter = Parsed(text);
    EXPECT_THAT(filter.states, IsEmpty());
    EXPECT_THAT(filter.labels, IsEmpty());
    EXPECT_EQ(filter.created_after, absl::InfinitePast());
  }
}

TEST(JobFilter, SpacesQuotesAndCase) {
  const JobFilter filter =
      Parsed("state=\"queued\"AND labels.\"a b=\"=\"say \\\"hi\\\" \\\\\" AND display_name = AND1");
  EXPECT_THAT(filter.states, ElementsAre(Job::QUEUED));
  EXPECT_THAT(filter.labels, ElementsAre(Pair("a b=", "say \"hi\" \\")));
  EXPECT_EQ(filter.display_name, "AND1");
  EXPECT_EQ(Parsed("display_name = \"AND\"").display_name, "AND");
  EXPECT_EQ(Parsed("display_name = \"\"").display_name, "");
  EXPECT_THAT(Parsed("labels.a.b-c/d = x").labels, ElementsAre(Pair("a.b-c/d", "x")));
}

TEST(JobFilter, OrJoinsStates) {
  EXPECT_THAT(Parsed("state = RUNNING OR state = QUEUED OR state = RUNNING").states,
              ElementsAre(Job::RUNNING, Job::QUEUED));
}

TEST(JobFilter, TimesNarrow) {
  const absl::Time begin = absl::FromUnixSeconds(1767225600);
  JobFilter filter = Parsed(
      "create_time >= 2026-01-01T01:00:00+01:00 AND create_time > \"2025-01-01T00:00:00Z\" AND "
      "create_time<=\"2026-01-02T00:00:00.5Z\" AND create_time < \"2027-01-01T00:00:00Z\"");
  EXPECT_EQ(filter.created_after, begin - absl::Nanoseconds(1));
  EXPECT_EQ(filter.created_before,
            begin + absl::Hours(24) + absl::Milliseconds(500) + absl::Nanoseconds(1));
}

TEST(JobFilter, FaultsNameTheTermAndWhatIsExpected) {
  const std::vector<std::array<const char*, 3>> cases = {
      {"state = RUNING", "state = RUNING", "did you mean RUNNING"},
      {"state = STATE_UNSPECIFIED", "state = STATE_UNSPECIFIED", "no such state"},
      {"state = 5", "state = 5", "no such state"},
      {"state > RUNNING", "state > RUNNING", "`>` does not go with state; use ="},
      {"state != RUNNING", "state != RUNNING", "`!=` does not go with state"},
      {"state = RUNNING AND state = QUEUED", "state = QUEUED", "join states with OR"},
      {"stat = RUNNING", "stat = RUNNING", "unknown field `stat`; there are state, display_name"},
      {"state = RUNNING OR labels.a = b", "labels.a = b", "OR joins states only"},
      {"labels.a = b OR labels.a = c", "OR labels.a = c", "OR joins states only"},
      {"labels.a = b AND labels.a = c", "labels.a = c", "another value"},
      {"display_name = b AND display_name = c", "display_name = c", "another one"},
      {"labels. = b", "labels. = b", "expected a key"},
      {"labels.a", "labels.a", "expected an operator"},
      {"labels.a b", "labels.a b", "expected an operator"},
      {"labels.a =", "labels.a =", "expected a value"},
      {"labels.a = AND state = RUNNING", "labels.a = AND", "expected a value"},
      {"labels.a = \"b", "b", "the quote is not closed"},
      {"state = RUNNING labels.a = b", "labels.a = b", "expected AND before this"},
      {"state = RUNNING AND", "the end", "expected a term"},
      {"create_time > yesterday", "create_time > yesterday", "expected a time such as"},
      {"create_time > 2026-01-01", "create_time > 2026-01-01", "expected a time such as"},
      {"create_time > infinite-future", "create_time > infinite-future", "expected a time"},
      {"create_time = \"2026-01-01T00:00:00Z\"", "create_time = ", "use >, >=, < or <="},
      {"= RUNNING", "= RUNNING", "expected an operator"},
      {"\x01\x02 = 1", "\\001\\002 = 1", "unknown field `\\001\\002`"},
  };
  for (const auto& [text, term, reason] : cases) {
    const absl::Status status = ParseJobFilter(text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    const std::string message(status.message());
    EXPECT_THAT(message, HasSubstr("filter: ")) << text;
    EXPECT_THAT(message, HasSubstr(term)) << text;
    EXPECT_THAT(message, HasSubstr(reason)) << text;
  }
}

TEST(JobFilter, IsBounded) {
  std::string many = "create_time > \"2026-01-01T00:00:00Z\"";
  for (int i = 0; i < 40; ++i) many += " AND create_time > \"2026-01-01T00:00:00Z\"";
  EXPECT_THAT(std::string(ParseJobFilter(many).status().message()), HasSubstr("more than 32"));
  const absl::Status long_text =
      ParseJobFilter("display_name = " + std::string(5000, 'x')).status();
  EXPECT_THAT(std::string(long_text.message()), HasSubstr("longer than 4096"));
}

TEST(JobOrder, TwoWays) {
  EXPECT_EQ(*ParseJobOrder(""), true);
  EXPECT_EQ(*ParseJobOrder("create_time  desc"), true);
  EXPECT_EQ(*ParseJobOrder("create_time"), false);
  EXPECT_EQ(*ParseJobOrder("create_time asc"), false);
  for (const char* text : {"name", "create_time down", "create_time, state"}) {
    const absl::Status status = ParseJobOrder(text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
  }
}

}  // namespace
}  // namespace lemo::coordinator
