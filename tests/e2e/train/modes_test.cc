// What lemo-train does besides training, and the forms of its output.
#include <gmock/gmock.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/util/delimited_message_util.h>
#include <gtest/gtest.h>

#include <sstream>
#include <string>
#include <vector>

#include "lemo/v1/run_event.pb.h"
#include "tests/e2e/train/workspace.h"

namespace lemo::train {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;

TEST(Modes, ValidateSaysWhatIsThere) {
  const Workspace workspace;
  const Outcome run = workspace.Run(Workspace::Spec(), {"--validate"});
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.out, HasSubstr("valid"));
  EXPECT_THAT(run.out, HasSubstr("40 rows"));
  EXPECT_FALSE(fs::exists(workspace.path() / "out/adapter"));
  EXPECT_FALSE(fs::exists(workspace.path() / "out/run_identity.json"));
  // And stands in no run's way.
  EXPECT_EQ(workspace.Run(Workspace::Spec()).exit_code, 0);
}

TEST(Modes, ThePrintedSpecIsTheSpec) {
  const Workspace workspace;
  const Outcome first = workspace.Run(Workspace::Spec(), {"--print-spec"});
  ASSERT_EQ(first.exit_code, 0) << first.err;
  const json printed = json::parse(first.out);
  EXPECT_EQ(printed.at("train").at("seed"), 7);
  EXPECT_EQ(printed.at("memory").at("policy"), "attn_out");
  const Outcome second = workspace.Run(printed, {"--print-spec"});
  EXPECT_EQ(second.out, first.out);
  const Outcome set =
      workspace.Run(printed, {"--print-spec", "--set", "train.seed=9", "--device", "auto"});
  EXPECT_EQ(json::parse(set.out).at("train").at("seed"), 9);
  EXPECT_EQ(json::parse(set.out).at("device"), "auto");
  EXPECT_FALSE(fs::exists(workspace.path() / "out"));
}

TEST(Modes, ThePreviewMarksWhatIsTrained) {
  const Workspace workspace;
  workspace.Write("train.jsonl",
                  "{\"prompt\": \"the girl\", \"completion\": \" had a ball\"}\n"
                  "{\"prompt\": \"the dog\", \"completion\": \" saw a tree\"}\n"
                  "{\"prompt\": \"one day\", \"completion\": \" she was happy\"}\n");
  const Outcome run = workspace.Run(Workspace::Spec(), {"--preview-data", "2"});
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.out, HasSubstr("train.jsonl:1: "));
  EXPECT_THAT(run.out, HasSubstr("the girl[["));
  EXPECT_THAT(run.out, HasSubstr("had a ball"));
  EXPECT_THAT(run.out, HasSubstr("train.jsonl:2: "));
  EXPECT_THAT(run.out, testing::Not(HasSubstr("train.jsonl:3: ")));
}

// Bytes as HumanBytes tells them, `26.2 MiB`.
double ReadBytes(std::istream& in) {
  double number = 0;
  std::string unit;
  in >> number >> unit;
  const double scale = unit == "KiB" ? 0x1p10 : unit == "MiB" ? 0x1p20 : unit == "GiB" ? 0x1p30 : 1;
  return number * scale;
}

// The offer that --plan marks, taken as it says, takes no more than it says.
TEST(Modes, APlanSaysWhatARunTakes) {
  const Workspace workspace;
  const Outcome plan = workspace.Run(Workspace::Spec(), {"--plan"});
  ASSERT_EQ(plan.exit_code, 0) << plan.err;
  EXPECT_FALSE(fs::exists(workspace.path() / "out/adapter"));
  double expected = 0, most = 0;
  std::vector<std::string> overrides;
  std::istringstream lines(plan.out);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string first, id;
    words >> first;
    if (first == "*") {
      words >> id;
      expected = ReadBytes(words);
      most = ReadBytes(words);
    } else if (first == "--set") {
      const size_t open = line.find('\'') + 1;
      overrides.insert(overrides.end(), {"--set", line.substr(open, line.rfind('\'') - open)});
    }
  }
  ASSERT_GT(expected, 0) << plan.out;
  ASSERT_FALSE(overrides.empty()) << plan.out;
  const Outcome run = workspace.Run(Workspace::Spec(), overrides);
  ASSERT_EQ(run.exit_code, 0) << run.out << run.err;
  const auto total = run.Last("result").at("peak_bytes").at("total").get<double>();
  // The table rounds to a tenth of its unit.
  EXPECT_LE(total, most * 1.01) << plan.out;
  // Sequences of short rows are not quite full, and publishing comes after the result.
  EXPECT_GE(total, expected * 0.75) << plan.out;
}

TEST(Modes, APlanNamesTheMemoryThatWouldDo) {
  const Workspace workspace;
  const Outcome plan = workspace.Run(Workspace::Spec(), {"--plan", "--memory", "1KiB"});
  EXPECT_EQ(plan.exit_code, 0) << plan.err;
  EXPECT_THAT(plan.out, HasSubstr("memory_bytes_max is 1.0 KiB"));
  EXPECT_THAT(plan.out, HasSubstr("would do"));
}

// For programs: with the rates that a plan measured the next one has the same offers, whatever is
// wished of them, and an id is enough to find one.
TEST(Modes, APlanInJsonCanBeAskedForAgain) {
  const Workspace workspace;
  const auto ids = [](const json& plan) {
    std::vector<std::string> ids;
    for (const json& offer : plan.at("offers")) ids.push_back(offer.at("id"));
    return ids;
  };
  const Outcome first = workspace.Run(Workspace::Spec(), {"--plan", "--json"});
  ASSERT_EQ(first.exit_code, 0) << first.err;
  const json plan = json::parse(first.out);
  ASSERT_GT(plan.at("offers").size(), 1u);
  const auto again = [&](const json& wish) {
    workspace.Write("options.json",
                    json({{"plan", wish}, {"rates", json::array({plan.at("rates")})}}).dump());
    return workspace.Run(Workspace::Spec(), {"--plan", "--json", "--plan-options", "options.json"});
  };
  const json smallest = json::parse(again({{"prefer", "smallest"}}).out);
  EXPECT_EQ(ids(smallest), ids(plan));
  EXPECT_EQ(smallest.at("preferred"), ids(plan).front());
  const std::string last = ids(plan).back();
  const json one = json::parse(again({{"offer", last.substr(0, 16)}}).out);
  EXPECT_EQ(ids(one), std::vector<std::string>({last}));
  EXPECT_EQ(one.at("preferred"), last);

  const Outcome none = again({{"offer", "00000000"}});
  EXPECT_EQ(none.exit_code, 2);
  EXPECT_THAT(none.out + none.err, HasSubstr("plan.offer"));
  const Outcome faulty = again({{"prefer", "best"}, {"min_keep", 2}});
  EXPECT_EQ(faulty.exit_code, 2);
  EXPECT_THAT(faulty.out + faulty.err,
              testing::AllOf(HasSubstr("plan.prefer"), HasSubstr("plan.min_keep")));
}

TEST(Modes, EvalOnlyGivesTheLossBeforeTraining) {
  const Workspace workspace;
  json spec = Workspace::Spec();
  const Outcome eval = workspace.Run(spec, {"--eval-only"});
  ASSERT_EQ(eval.exit_code, 0) << eval.out << eval.err;
  EXPECT_FALSE(fs::exists(workspace.path() / "out/adapter"));
  const Outcome train = workspace.Run(spec);
  ASSERT_EQ(train.exit_code, 0) << train.out << train.err;
  EXPECT_EQ(eval.Last("result").at("eval_loss"), train.Last("result").at("eval_loss_before"));
  EXPECT_EQ(eval.Last("eval").at("labelled_tokens"), train.Of("eval")[0].at("labelled_tokens"));
}

TEST(Modes, EventsGoToADescriptorAsProtobuf) {
  const Workspace workspace;
  workspace.Write("run.json", Workspace::Spec().dump());
  const Outcome run =
      workspace.RunPlain({"run.json", "--events", "fd:3"}, {.fd3 = workspace.path() / "events"});
  ASSERT_EQ(run.exit_code, 0) << run.out << run.err;
  EXPECT_EQ(run.out, "");
  const std::string bytes = ReadAll(workspace.path() / "events");
  google::protobuf::io::ArrayInputStream stream(bytes.data(), static_cast<int>(bytes.size()));
  std::vector<lemo::v1::RunEvent> events;
  bool clean_end = false;
  lemo::v1::RunEvent event;
  while (google::protobuf::util::ParseDelimitedFromZeroCopyStream(&event, &stream, &clean_end)) {
    events.push_back(event);
    event.Clear();
  }
  EXPECT_TRUE(clean_end);
  int steps = 0;
  for (size_t i = 0; i < events.size(); ++i) {
    EXPECT_EQ(events[i].sequence(), static_cast<int64_t>(i) + 1);
    if (!events[i].has_step()) continue;
    EXPECT_EQ(events[i].step().step(), ++steps);
  }
  EXPECT_EQ(steps, 4);
  ASSERT_FALSE(events.empty());
  EXPECT_EQ(events.back().result().steps(), 4);
  EXPECT_EQ(events.back().result().adapter_dir(), "out/adapter");
}

TEST(Modes, PrettyIsForPeople) {
  const Workspace workspace;
  workspace.Write("run.json", Workspace::Spec().dump());
  const Outcome run = workspace.RunPlain({"run.json"});
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.out, HasSubstr("out/adapter"));
  EXPECT_THAT(run.out, HasSubstr("perplexity"));
  EXPECT_TRUE(run.events.empty());
}

}  // namespace
}  // namespace lemo::train
