#include "worker/train/report/report.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/sample_run.h"
#include "worker/train/report/block_picture.h"
#include "worker/train/report/chart.h"
#include "worker/train/report/report_html.h"
#include "worker/train/report/sparsity.h"

namespace lemo::train {
namespace {

using ::lemo::testing::AddSampleEnd;
using ::lemo::testing::AddSampleStart;
using ::lemo::testing::AddSampleSteps;
using ::lemo::testing::SampleClock;
using ::lemo::testing::SampleFacts;
using ::lemo::testing::SampleReport;
using ::lemo::testing::SparseSampleReport;
using ::testing::AllOf;
using ::testing::ElementsAre;
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

TEST(RunReport, ARunThatDropsRowsShowsWhichOnes) {
  const RunReport report = SparseSampleReport();
  ASSERT_TRUE(report.last_sparse_step());
  EXPECT_EQ(report.last_sparse_step()->step(), 40);
  // Every layer's last measurement: layers 2, 1 and 3 in steps 40, 30 and 20.
  EXPECT_THAT(report.last_sparse_step()->sparsity().recall_layers(), ElementsAre(1, 2, 3));
  EXPECT_THAT(report.last_sparse_step()->sparsity().recall(),
              ElementsAre(0.734375, 0.8125, 0.65625));
  // The first step that told and the last ones; of other micro-batches none.
  std::vector<int> steps;
  for (const auto& selection : report.selections()) {
    steps.push_back(selection.step());
    EXPECT_EQ(selection.micro_batch(), 0);
  }
  EXPECT_THAT(steps, ElementsAre(10, 30, 35, 40));
  const std::string html = RenderReportHtml(report);
  ExpectBalanced(html);
  EXPECT_THAT(html,
              AllOf(HasSubstr("Rows that took part"), HasSubstr("never computed, last 25.0 %"),
                    HasSubstr("2 blocks had scores that were not finite"),
                    HasSubstr("layer 2: attention 41.4 % of the rows, MLP 58.6 %"),
                    HasSubstr("8 blocks of up to 64 rows, 2 documents"),
                    HasSubstr("The same in step 10"), HasSubstr("With rows dropped")));
  EXPECT_THAT(html, AllOf(Not(HasSubstr("<script")), Not(HasSubstr("url("))));
  for (const auto& [name, formula] : SparsityDefinitions()) {
    EXPECT_THAT(html, HasSubstr(EscapeHtml(formula)));
  }
}

TEST(RunReport, ARunOfAllRowsSaysNothingOfRowsDropped) {
  const std::string html = RenderReportHtml(SampleReport());
  EXPECT_THAT(html, AllOf(Not(HasSubstr("Rows that took part")), Not(HasSubstr("rows dropped"))));
  const auto json = SampleReport().ToJson();
  EXPECT_TRUE(json["sparsity"].is_null());
  EXPECT_FALSE(json["curves"]["train"][0].contains("sparsity"));
  EXPECT_FALSE(json["curves"]["eval"][0].contains("sparse_loss"));
  EXPECT_FALSE(json["metrics"].contains("rows computed"));
}

TEST(RunReport, SelectionsThatDoNotFitAreNotKept) {
  const auto bad = [](const std::function<void(lemo::v1::SelectionEvent*)>& change) {
    lemo::v1::RunEvent event;
    *event.mutable_selection() = lemo::testing::SampleSelection(1);
    change(event.mutable_selection());
    RunReport report;
    report.Add(event);
    return report.selections().empty();
  };
  EXPECT_FALSE(bad([](auto*) {}));
  EXPECT_TRUE(bad([](auto* event) { event->mutable_attention(1)->pop_back(); }));
  EXPECT_TRUE(bad([](auto* event) { event->mutable_mlp(2)->push_back(1); }));
  EXPECT_TRUE(bad([](auto* event) { event->mutable_mlp()->RemoveLast(); }));
  EXPECT_TRUE(bad([](auto* event) { event->set_block_starts(3, 128); }));
  EXPECT_TRUE(bad([](auto* event) { event->set_block_starts(0, -1); }));
  EXPECT_TRUE(bad([](auto* event) { event->set_document_starts(2, 465); }));
  EXPECT_TRUE(bad([](auto* event) { event->clear_block_starts(); }));
  EXPECT_TRUE(bad([](auto* event) { event->Clear(); }));
  EXPECT_TRUE(bad([](auto* event) { event->set_micro_batch(1); }));
}

TEST(RunReport, PicturesOfLongContextsStaySmall) {
  lemo::v1::RunEvent event;
  lemo::v1::SelectionEvent& selection = *event.mutable_selection();
  constexpr int kBlocks = 16384;
  std::string mask;
  for (int block = 0; block < kBlocks; ++block) {
    selection.add_block_starts(64 * block);
    mask += static_cast<char>(block * 7919 % 5 < 2);
  }
  selection.add_block_starts(64 * kBlocks);
  for (const int row : {0, 64 * kBlocks}) selection.add_document_starts(row);
  for (int layer = 0; layer < 32; ++layer) {
    selection.add_attention(mask);
    selection.add_mlp("");
  }
  ASSERT_TRUE(IsWhole(selection));
  EXPECT_EQ(BlocksOfAColumn(selection), 37);
  const std::string picture = BlockPicture(selection, "all");
  ExpectBalanced(picture);
  EXPECT_LT(picture.size(), 400'000u);
  EXPECT_THAT(picture, HasSubstr("layer 31: 40.0 % of the rows"));
}

TEST(RunReport, AResumedRunKeepsWhatWasSaidOfRows) {
  const RunReport whole = SparseSampleReport();
  SampleClock clock;
  RunReport first;
  AddSampleStart(&clock, &first);
  lemo::testing::AddSparseSteps(1, 25, &clock, &first);
  RunReport second;
  second.SetFacts(SampleFacts());
  const absl::Status restored = second.RestoreState(first.SaveState());
  ASSERT_TRUE(restored.ok()) << restored;
  EXPECT_EQ(second.SaveState(), first.SaveState());
  lemo::testing::AddSparseSteps(26, 40, &clock, &second);
  EXPECT_EQ(second.ToJson()["sparsity"].dump(), whole.ToJson()["sparsity"].dump());
  EXPECT_EQ(second.ToJson()["curves"]["train"].dump(), whole.ToJson()["curves"]["train"].dump());
  // Bytes that no run has written.
  std::string state = first.SaveState();
  const size_t at = state.find("\"block_starts\":[0,64");
  ASSERT_NE(at, state.npos);
  EXPECT_EQ(RunReport().RestoreState(state.replace(at, 20, "\"block_starts\":[0,00")).code(),
            absl::StatusCode::kInvalidArgument);
}

lemo::v1::AmendmentEvent Amendment(int step) {
  lemo::v1::AmendmentEvent amendment;
  amendment.set_step(step);
  amendment.set_action("storage");
  amendment.set_layers("0-1");
  amendment.set_from("attn_out x4");
  amendment.set_to("input x2, attn_out x2");
  amendment.set_exact(true);
  amendment.set_reason("budget");
  amendment.set_budget_bytes(1 << 20);
  amendment.set_predicted_bytes_before(1 << 21);
  amendment.set_predicted_bytes_after((1 << 20) - 1024);
  amendment.set_measured_peak_bytes((1 << 20) - 2048);
  amendment.set_measured_seconds(0.25);
  return amendment;
}

TEST(RunReport, ShowsWhatTheGovernorDid) {
  RunReport report = lemo::testing::SampleReport();
  EXPECT_THAT(RenderReportHtml(report), Not(HasSubstr("What the governor did")));
  SampleClock clock;
  auto event = clock.After(1);
  *event.mutable_amendment() = Amendment(12);
  report.Add(event);
  EXPECT_THAT(RenderReportHtml(report),
              AllOf(HasSubstr("What the governor did"), HasSubstr("storage, layers 0-1"),
                    HasSubstr("input x2, attn_out x2")));
  const auto json = report.ToJson();
  ASSERT_EQ(json["amendments"].size(), 1u);
  EXPECT_EQ(json["amendments"][0]["from"], "attn_out x4");
  EXPECT_FALSE(json.contains("amendments_total"));

  RunReport resumed;
  ASSERT_TRUE(resumed.RestoreState(report.SaveState()).ok());
  EXPECT_EQ(resumed.ToJson()["amendments"], json["amendments"]);
}

TEST(RunReport, ShowsWhatWasRehearsed) {
  RunReport report = lemo::testing::SampleReport();
  EXPECT_THAT(RenderReportHtml(report), Not(HasSubstr("Rehearsed before")));
  EXPECT_FALSE(report.ToJson().contains("rehearsals"));
  SampleClock clock;
  auto event = clock.After(1);
  event.mutable_rehearsal()->set_rows(4100);
  event.mutable_rehearsal()->add_changes("passes as they come -> of 512 rows");
  for (size_t i = 0; i < 2 * RunReport::kMaxRehearsals; ++i) {
    event.mutable_rehearsal()->set_step(static_cast<int32_t>(i + 1));
    report.Add(event);
  }
  EXPECT_THAT(RenderReportHtml(report),
              AllOf(HasSubstr("Rehearsed before the first step"), HasSubstr("4,100"),
                    HasSubstr("passes as they come -&gt; of 512 rows")));
  const auto json = report.ToJson();
  ASSERT_EQ(json["rehearsals"].size(), RunReport::kMaxRehearsals);
  EXPECT_EQ(json["rehearsals"].back()["step"], 2 * RunReport::kMaxRehearsals);

  RunReport resumed;
  ASSERT_TRUE(resumed.RestoreState(report.SaveState()).ok());
  EXPECT_EQ(resumed.ToJson()["rehearsals"], json["rehearsals"]);
}

TEST(RunReport, OfManyAmendmentsTheFirstAndTheLastStay) {
  RunReport report;
  SampleClock clock;
  const int count = 2 * static_cast<int>(RunReport::kMaxAmendments);
  for (int step = 1; step <= count; ++step) {
    auto event = clock.After(1);
    *event.mutable_amendment() = Amendment(step);
    report.Add(event);
  }
  EXPECT_EQ(report.amendments().size(), RunReport::kMaxAmendments);
  EXPECT_EQ(report.amendments().front().step(), 1);
  EXPECT_EQ(report.amendments()[RunReport::kMaxAmendments / 2 - 1].step(),
            static_cast<int>(RunReport::kMaxAmendments) / 2);
  EXPECT_EQ(report.amendments().back().step(), count);
  EXPECT_EQ(report.ToJson()["amendments_total"], count);
  RunReport resumed;
  ASSERT_TRUE(resumed.RestoreState(report.SaveState()).ok());
  EXPECT_EQ(resumed.amendments_total(), count);
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
