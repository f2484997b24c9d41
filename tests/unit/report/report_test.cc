#include "worker/train/report/report.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/sample_run.h"
#include "worker/train/report/chart.h"
#include "worker/train/report/report_html.h"

namespace lemo::train {
namespace {

using ::lemo::testing::AddSampleEnd;
using ::lemo::testing::AddSampleStart;
using ::lemo::testing::AddSampleSteps;
using ::lemo::testing::SampleClock;
using ::lemo::testing::SampleEval;
using ::lemo::testing::SampleFacts;
using ::lemo::testing::SampleReport;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

// Every element that opens also closes, in order.
void ExpectBalanced(const std::string& html) {
  std::vector<std::string> open;
  for (size_t at = 0; (at = html.find('<', at)) != html.npos; ++at) {
    const size_t end = html.find('>', at);
    ASSERT_NE(end, html.npos);
    std::string tag = html.substr(at + 1, end - at - 1);
    if (tag[0] == '!' || tag.back() == '/') continue;
    const bool closes = tag[0] == '/';
    tag = tag.substr(closes ? 1 : 0, tag.find_first_of(" \n", 1) - (closes ? 1 : 0));
    if (tag == "meta" || tag == "br") continue;
    if (!closes) {
      open.push_back(tag);
    } else {
      ASSERT_FALSE(open.empty()) << tag;
      ASSERT_EQ(open.back(), tag) << html.substr(at > 200 ? at - 200 : 0, 240);
      open.pop_back();
    }
  }
  EXPECT_TRUE(open.empty());
}

TEST(RunReport, ThePageStandsAlone) {
  const std::string html = RenderReportHtml(SampleReport());
  ExpectBalanced(html);
  EXPECT_THAT(html,
              AllOf(Not(HasSubstr("<script")), Not(HasSubstr("http:")), Not(HasSubstr("https:")),
                    Not(HasSubstr("url(")), HasSubstr("prefers-color-scheme: dark")));
  EXPECT_THAT(html, AllOf(HasSubstr("novelist-3m on almayer-train.txt"), HasSubstr("<svg"),
                          HasSubstr("288.0 MiB"), HasSubstr("105,812"), HasSubstr("18.00"),
                          HasSubstr("model = PeftModel.from_pretrained(base, "
                                    "&quot;out/almayer/adapter&quot;)"),
                          HasSubstr("1 split"), HasSubstr("&quot;warmup_steps&quot;: 8")));
  for (const auto& [name, formula] : MetricDefinitions()) {
    EXPECT_THAT(html, HasSubstr(EscapeHtml(formula)));
  }
}

TEST(RunReport, EveryTextIsEscaped) {
  const std::string evil = "<script>\"'&\x1b\xff</script>";
  RunReport report;
  ReportFacts facts = SampleFacts();
  facts.spec.mutable_model()->set_path(evil);
  facts.spec.mutable_data()->mutable_train(0)->set_path(evil);
  facts.spec.mutable_tuner()->mutable_lora()->set_targets(0, evil);
  facts.family = facts.architecture = facts.device = facts.compute_type = evil;
  facts.template_sha256 = facts.tokenizer_sha256 = evil;
  facts.trainable_tensors = {evil};
  facts.versions = {{evil, evil}};
  facts.data[0].path = facts.data[0].format = facts.data[0].role = facts.data[0].sha256 = evil;
  report.SetFacts(facts);
  SampleClock clock;
  lemo::testing::AddSamplePhase(evil, 1, &clock, &report);
  AddSampleSteps(1, 20, &clock, &report);
  auto event = clock.After(1);
  event.mutable_warning()->set_message(evil);
  event.mutable_warning()->set_field(evil);
  report.Add(event);
  event.mutable_checkpoint()->set_path(evil);
  event.mutable_checkpoint()->set_reason(evil);
  report.Add(event);
  event.mutable_result()->set_adapter_dir(evil);
  event.mutable_result()->set_model_dir(evil);
  report.Add(event);
  event.mutable_error()->set_message(evil);
  event.mutable_error()->set_advice(evil);
  event.mutable_error()->add_violations()->set_reason(evil);
  report.Add(event);
  const std::string html = RenderReportHtml(report);
  EXPECT_THAT(html,
              AllOf(Not(HasSubstr("<script")), Not(HasSubstr("\x1b")), Not(HasSubstr("\xff"))));
  ExpectBalanced(html);
  EXPECT_FALSE(
      report.ToJson().dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).empty());
}

TEST(RunReport, EmptyAndOddRunsHaveAPageToo) {
  ExpectBalanced(RenderReportHtml(RunReport()));
  RunReport report;
  SampleClock clock;
  for (int step = 1; step <= 3; ++step) {
    auto event = clock.After(1);
    auto* out = event.mutable_step();
    *out = lemo::testing::SampleStep(step, 3);
    out->set_loss(step == 2 ? NAN : INFINITY);
    out->set_grad_norm(1e308 * (step % 2 ? 1 : -1));
    out->set_learning_rate(0);
    report.Add(event);
  }
  auto event = clock.After(-5);
  event.mutable_result()->set_eval_loss(NAN);
  report.Add(event);
  const std::string html = RenderReportHtml(report);
  ExpectBalanced(html);
  EXPECT_THAT(html, AllOf(Not(HasSubstr("inf")), Not(HasSubstr(">nan"))));
  EXPECT_TRUE(report.ToJson()["curves"]["train"][1]["loss"].is_null());
  EXPECT_FALSE(report.TrainerState()["log_history"][0].contains("loss"));
}

TEST(RunReport, Status) {
  RunReport report;
  EXPECT_EQ(report.Status(), "running");
  lemo::v1::RunEvent event;
  event.mutable_result()->set_interrupted(true);
  report.Add(event);
  EXPECT_EQ(report.Status(), "interrupted");
  event.mutable_result()->set_interrupted(false);
  report.Add(event);
  EXPECT_EQ(report.Status(), "succeeded");
  event.mutable_error()->set_message("x");
  report.Add(event);
  EXPECT_EQ(report.Status(), "failed");
}

TEST(RunReport, PhasesSumToTheTimeBetweenFirstAndLastEvent) {
  double sum = 0;
  const RunReport report = SampleReport();
  for (const ReportPhase& phase : report.phases()) sum += phase.seconds;
  EXPECT_DOUBLE_EQ(sum, report.finished_unix_seconds() - report.started_unix_seconds());
  EXPECT_EQ(report.phases()[1].name, "load");
  EXPECT_DOUBLE_EQ(report.phases()[1].seconds, 1.5);
}

TEST(RunReport, AResumedRunReportsAllOfIt) {
  const RunReport whole = SampleReport();
  SampleClock clock;
  RunReport first;
  AddSampleStart(&clock, &first);
  AddSampleSteps(1, 25, &clock, &first);
  RunReport second;
  second.SetFacts(SampleFacts());
  ASSERT_TRUE(second.RestoreState(first.SaveState()).ok());
  EXPECT_EQ(second.SaveState(), first.SaveState());
  lemo::testing::AddSamplePhase("train", 0, &clock, &second);
  AddSampleSteps(26, 40, &clock, &second);
  AddSampleEnd(&clock, &second);
  EXPECT_EQ(second.ToJson()["curves"].dump(), whole.ToJson()["curves"].dump());
  EXPECT_EQ(second.TrainerState().dump(), whole.TrainerState().dump());
  EXPECT_EQ(second.started_unix_seconds(), whole.started_unix_seconds());
  EXPECT_EQ(second.warnings().size(), 1u);
}

TEST(RunReport, StateKeepsNumbersThatAreNotFinite) {
  RunReport report;
  lemo::v1::RunEvent event;
  event.set_unix_seconds(5);
  event.mutable_step()->set_step(1);
  event.mutable_step()->set_loss(0.1 + 0.2);
  event.mutable_step()->set_grad_norm(NAN);
  report.Add(event);
  RunReport again;
  ASSERT_TRUE(again.RestoreState(report.SaveState()).ok());
  EXPECT_TRUE(std::isnan(again.curve().points()[0].grad_norm()));
  EXPECT_EQ(again.curve().points()[0].loss(), 0.1 + 0.2);
}

TEST(RunReport, RefusesAStateThatIsNone) {
  for (const char* state : {"", "{", "[]", "{}", R"({"window": 0})", R"({"window": 1, "steps": 3})",
                            R"({"window": 1, "steps": [{"stepp": 1}]})",
                            R"({"window": 1, "steps": [{"step": 2}, {"step": 2}]})"}) {
    RunReport report;
    EXPECT_EQ(report.RestoreState(state).code(), absl::StatusCode::kInvalidArgument) << state;
    EXPECT_TRUE(report.curve().points().empty());
  }
}

TEST(RunReport, WritesThreeFilesOrSaysWhyNot) {
  const std::filesystem::path dir =
      std::filesystem::path(::testing::TempDir()) / ("report-" + std::to_string(getpid()));
  EXPECT_FALSE(SampleReport().Write(dir).ok());
  std::filesystem::create_directories(dir);
  ASSERT_TRUE(SampleReport().Write(dir).ok());
  for (const char* name : {"report.json", "trainer_state.json"}) {
    std::ifstream file(dir / name);
    EXPECT_TRUE(nlohmann::json::accept(file)) << name;
  }
  EXPECT_GT(std::filesystem::file_size(dir / "report.html"), 10000u);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir), {}), 3);
  std::filesystem::remove_all(dir);
}

TEST(LineChart, DrawsWhatIsFinite) {
  EXPECT_EQ(LineChart({}, {}), "");
  EXPECT_EQ(LineChart({}, {{"a", "blue", {{1, NAN}}}}), "");
  const std::string one = LineChart({}, {{"a", "blue", {{1, 5}}, true}});
  EXPECT_THAT(one, AllOf(HasSubstr("<svg"), Not(HasSubstr("nan"))));
  const std::string three =
      LineChart({.description = "a<b"}, {{"a", "blue", {{0, 1}, {1, INFINITY}, {2, 3}}}});
  EXPECT_THAT(three, AllOf(HasSubstr("a&lt;b"), HasSubstr("M58.0 "), HasSubstr("L706.0 "),
                           Not(HasSubstr("inf")), HasSubstr("step 2: 3</title>")));
}

}  // namespace
}  // namespace lemo::train
