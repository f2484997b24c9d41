#include "common/violations.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"

namespace lemo {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(Violation, TextLeavesOutEmptyParts) {
  EXPECT_EQ((Violation{.field = "train.steps", .reason = "must be positive"}).ToString(),
            "train.steps: must be positive");
  EXPECT_EQ((Violation{.field = "data.train[0]",
                       .reason = "must be a string",
                       .file = "rows.jsonl",
                       .line = 7,
                       .json_path = "messages[1].role"})
                .ToString(),
            "data.train[0]: rows.jsonl:7: messages[1].role: must be a string");
  EXPECT_EQ((Violation{.reason = "is empty", .file = "rows.jsonl"}).ToString(),
            "rows.jsonl: is empty");
}

TEST(Violations, NoneIsOk) {
  EXPECT_TRUE(Violations().empty());
  EXPECT_TRUE(Violations().ToStatus().ok());
}

TEST(Violations, OneLineEachInTheOrderFound) {
  Violations violations;
  violations.Add("b", "first");
  violations.Add("a", "second");
  const absl::Status status = violations.ToStatus();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(std::string(status.message()), "b: first\na: second");
}

TEST(Violations, KeepsABoundedListAndCountsTheRest) {
  Violations violations;
  for (size_t i = 0; i < Violations::kKept; ++i) violations.Add(absl::StrCat("f", i), "bad");
  EXPECT_THAT(std::string(violations.ToStatus().message()), Not(HasSubstr("more")));
  for (int i = 0; i < 3; ++i) violations.Add("late", "bad");
  EXPECT_EQ(violations.total(), static_cast<int64_t>(Violations::kKept) + 3);
  EXPECT_EQ(violations.kept().size(), Violations::kKept);
  const std::string message(violations.ToStatus().message());
  EXPECT_THAT(message, EndsWith("... and 3 more"));
  EXPECT_THAT(message, Not(HasSubstr("late")));
}

TEST(Violations, AppendCountsWhatTheOtherDropped) {
  Violations many, few;
  for (size_t i = 0; i < Violations::kKept + 5; ++i) many.Add("many", "bad");
  few.Add("few", "bad");
  few.Append(many);
  EXPECT_EQ(few.total(), static_cast<int64_t>(Violations::kKept) + 6);
  EXPECT_EQ(few.kept().size(), Violations::kKept);
  EXPECT_EQ(few.kept().front().field, "few");
}

TEST(NearestName, FindsTyposAndNothingElse) {
  const std::vector<std::string> names = {"learning_rate", "weight_decay", "steps"};
  EXPECT_EQ(NearestName("learning_rte", names), "learning_rate");
  EXPECT_EQ(NearestName("step", names), "steps");
  EXPECT_EQ(NearestName("zzzzzzzzzz", names), "");
  EXPECT_EQ(NearestName("steps", {}), "");
}

}  // namespace
}  // namespace lemo
