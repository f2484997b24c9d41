#include "worker/train/report/pretty.h"

#include <cmath>
#include <functional>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/sample_run.h"
#include "worker/train/report/event_sink.h"

namespace lemo::train {
namespace {

using ::lemo::testing::SampleClock;
using ::lemo::testing::SampleEval;
using ::lemo::testing::SampleReport;
using ::lemo::testing::SampleStep;
using ::testing::AllOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

lemo::v1::RunEvent StepAfter(SampleClock* clock, double seconds, int step) {
  auto event = clock->After(seconds);
  *event.mutable_step() = SampleStep(step, 40);
  return event;
}

TEST(Pretty, ATerminalHasOneProgressLine) {
  PrettyFormatter formatter({.terminal = true, .width = 100});
  SampleClock clock;
  const std::string first = formatter.Format(StepAfter(&clock, 1, 10));
  EXPECT_THAT(first, AllOf(StartsWith("\r\x1b[K[=====>"), HasSubstr("step 10/40"),
                           HasSubstr("loss 3.0"), HasSubstr("16.4k tok/s"), HasSubstr("412.0 MiB"),
                           HasSubstr("ETA 0:15"), Not(HasSubstr("\n"))));
  // Too soon for another.
  EXPECT_EQ(formatter.Format(StepAfter(&clock, 0.05, 11)), "");
  EXPECT_THAT(formatter.Format(StepAfter(&clock, 0.06, 12)), HasSubstr("step 12/40"));
  // An evaluation takes the line's place.
  auto eval = clock.After(1);
  *eval.mutable_eval() = SampleEval(12, 3, 20.1, false);
  EXPECT_THAT(formatter.Format(eval),
              AllOf(StartsWith("\r\x1b[K  eval at step 12"), EndsWith("\n")));
  EXPECT_THAT(formatter.Format(eval), StartsWith("  eval"));
  // The last step is drawn however soon it comes, and stays.
  formatter.Format(StepAfter(&clock, 1, 39));
  EXPECT_THAT(formatter.Format(StepAfter(&clock, 0, 40)),
              AllOf(HasSubstr("40/40"), EndsWith("\n")));
}

TEST(Pretty, TheProgressLineFitsEveryWidth) {
  for (int width = 1; width <= 200; ++width) {
    PrettyFormatter formatter({.terminal = true, .width = width});
    SampleClock clock;
    std::string line = formatter.Format(StepAfter(&clock, 1, 10)).substr(4);
    EXPECT_LE(line.size(), std::max<size_t>(width - 1, 1)) << width;
    if (width > 30) {
      EXPECT_THAT(line, HasSubstr("step 10/40  loss 3.0"));
    }
  }
}

TEST(Pretty, AFileGetsALineAStepAtMostOnceASecond) {
  PrettyFormatter formatter({.terminal = false});
  SampleClock clock;
  EXPECT_THAT(formatter.Format(StepAfter(&clock, 1, 1)),
              AllOf(StartsWith("  step 1/40  loss 3."), EndsWith("\n"), Not(HasSubstr("\x1b"))));
  EXPECT_EQ(formatter.Format(StepAfter(&clock, 0.5, 2)), "");
  EXPECT_THAT(formatter.Format(StepAfter(&clock, 0.5, 3)), HasSubstr("step 3/40"));
  EXPECT_THAT(formatter.Format(StepAfter(&clock, 0, 40)), HasSubstr("step 40/40"));
}

TEST(Pretty, AStepThatDropsRowsSaysHowManyItKept) {
  PrettyFormatter lines({.terminal = false}), live({.terminal = true, .width = 100});
  SampleClock clock;
  auto step = StepAfter(&clock, 1, 10);
  EXPECT_THAT(lines.Format(step), Not(HasSubstr("kept")));
  step = StepAfter(&clock, 1, 11);
  *step.mutable_step()->mutable_sparsity() = lemo::testing::SampleSparsity(11);
  EXPECT_THAT(lines.Format(step), HasSubstr("16.4k tok/s  kept 62 %  peak 412.0 MiB"));
  EXPECT_THAT(live.Format(step), HasSubstr("16.4k tok/s  kept 62 %  412.0 MiB"));
  step = StepAfter(&clock, 1, 20);
  *step.mutable_step()->mutable_sparsity() = lemo::testing::SampleSparsity(20);
  EXPECT_THAT(lines.Format(step), HasSubstr("kept 62 % (recall 66 %)  peak"));
  // A picture is none of a terminal's, and leaves the progress line alone.
  auto selection = clock.After(0);
  *selection.mutable_selection() = lemo::testing::SampleSelection(11);
  EXPECT_EQ(live.Format(selection), "");
  EXPECT_EQ(lines.Format(selection), "");
  auto eval = clock.After(1);
  *eval.mutable_eval() = SampleEval(11, 3, 20.1, false);
  EXPECT_THAT(lines.Format(eval), Not(HasSubstr("dropping")));
  eval.mutable_eval()->set_sparse_loss(3.25);
  eval.mutable_eval()->set_sparse_perplexity(25.790340);
  EXPECT_THAT(lines.Format(eval), HasSubstr("dropping rows: perplexity 25.79"));
  // That of a predictor.
  for (const double share : {0.75, 1.0}) eval.mutable_eval()->add_recall(share);
  eval.mutable_eval()->set_perplexity(NAN);
  EXPECT_EQ(lines.Format(eval),
            "  eval at step 11  loss 3.0000  recall 87.5 %, mean of 2 layers  (1.2 s)\n");
}

TEST(Pretty, AnAmendmentSaysWhatWasPredictedAndWhatCame) {
  SampleClock clock;
  auto event = clock.After(1);
  lemo::v1::AmendmentEvent& amendment = *event.mutable_amendment();
  amendment.set_step(7);
  amendment.set_action("storage");
  amendment.set_layers("0-3");
  amendment.set_from("attn_out x8");
  amendment.set_to("input x4, attn_out x4");
  amendment.set_exact(true);
  amendment.set_budget_bytes(10 << 20);
  amendment.set_predicted_bytes_before(12 << 20);
  amendment.set_predicted_bytes_after(9 << 20);
  amendment.set_measured_peak_bytes(8 << 20);
  PrettyFormatter formatter({.terminal = false});
  EXPECT_EQ(formatter.Format(event),
            "  amended at step 7  layers 0-3: attn_out x8 -> input x4, attn_out x4  "
            "(12.0 MiB -> 9.0 MiB, measured 8.0 MiB, of 10.0 MiB)\n");
  amendment.set_back(true);
  amendment.set_action("keep");
  amendment.clear_layers();
  amendment.set_exact(false);
  amendment.set_from("0.25");
  amendment.set_to("0.5");
  amendment.set_predicted_seconds_before(1.5);
  amendment.set_predicted_seconds_after(2);
  amendment.set_measured_seconds(1.75);
  EXPECT_THAT(formatter.Format(event),
              AllOf(StartsWith("  back at step 7  0.25 -> 0.5  ("),
                    EndsWith("; 1.5 -> 2 s, measured 1.75 s)  changes what is computed\n")));
}

TEST(Pretty, ARehearsalSaysWhatItWasAndWhatItTook) {
  SampleClock clock;
  auto event = clock.After(1);
  lemo::v1::RehearsalEvent& rehearsal = *event.mutable_rehearsal();
  rehearsal.set_step(61);
  rehearsal.set_rows(4100);
  rehearsal.set_longest(3707);
  rehearsal.set_budget_bytes(10 << 20);
  rehearsal.set_predicted_bytes(9 << 20);
  rehearsal.set_peak_bytes(8 << 20);
  rehearsal.set_seconds(2);
  PrettyFormatter formatter({.terminal = false});
  const std::string plain =
      "  rehearsed a pass of step 61  4,100 rows, the longest document 3,707: forecast 9.0 MiB, "
      "measured 8.0 MiB, of 10.0 MiB (2.0 s)";
  EXPECT_EQ(formatter.Format(event), plain + "\n");
  rehearsal.add_changes("layers 0-3: all x8 -> input x4, all x4");
  rehearsal.set_refused(true);
  EXPECT_EQ(formatter.Format(event), plain +
                                         "  layers 0-3: all x8 -> input x4, all x4"
                                         "  the forecast was too low, and is corrected\n");
}

std::string ResultText(const std::function<void(lemo::v1::ResultEvent*)>& change) {
  SampleClock clock;
  auto event = clock.After(1);
  *event.mutable_result() = *SampleReport().result();
  change(event.mutable_result());
  return PrettyFormatter({}).Format(event);
}

TEST(Pretty, TheResultEndsWithHowToLoadIt) {
  const std::string text = ResultText([](auto*) {});
  EXPECT_THAT(text,
              AllOf(HasSubstr("Finished: 40 steps"), HasSubstr("3.2500 -> 2.8906"),
                    HasSubstr("25.79 -> 18.005"), HasSubstr("saved activations 288.0 MiB"),
                    EndsWith("PeftModel.from_pretrained(base_model, \"out/almayer/adapter\")\n")));
}

TEST(Pretty, WhatWasNotMeasuredIsLeftOut) {
  const std::string text = ResultText([](lemo::v1::ResultEvent* result) {
    result->set_eval_loss(NAN);
    result->set_eval_loss_before(NAN);
    result->set_perplexity(NAN);
    result->set_perplexity_before(NAN);
    result->set_publish_max_logit_difference(NAN);
  });
  EXPECT_THAT(text, AllOf(Not(HasSubstr("eval loss")), Not(HasSubstr("perplexity")),
                          Not(HasSubstr("checked")), Not(HasSubstr("nan"))));
}

TEST(Pretty, AnInterruptedRunSaysHowToGoOn) {
  EXPECT_THAT(ResultText([](lemo::v1::ResultEvent* result) { result->set_interrupted(true); }),
              AllOf(HasSubstr("Stopped by a signal after step 40"),
                    EndsWith("--resume auto to go on from the checkpoint.\n")));
  EXPECT_THAT(ResultText([](lemo::v1::ResultEvent* result) {
                result->set_interrupted(true);
                result->set_steps(0);
              }),
              EndsWith("No step was done; run the same command again.\n"));
}

TEST(Pretty, ErrorsListFaultsAndEndWithTheAdvice) {
  Violations violations;
  for (int i = 0; i < 60; ++i) violations.Add("data.train[0]", "row " + std::to_string(i));
  violations.Add({});
  auto event = MakeErrorEvent("bad data", violations, 2, "fix the rows");
  EXPECT_EQ(event.error().exit_code(), 2);
  const std::string text = PrettyFormatter({}).Format(event);
  EXPECT_THAT(text, AllOf(HasSubstr("error: bad data (61 faults, the first 50 follow)\n"),
                          HasSubstr("\n  data.train[0]: row 49\n"),
                          EndsWith("\nWhat to do: fix the rows\n")));
  for (int code : {2, 3, 4}) {
    EXPECT_FALSE(MakeErrorEvent("x", {}, code).error().advice().empty());
  }
}

TEST(Pretty, TextFromFilesCannotDriveTheTerminal) {
  PrettyFormatter formatter({.terminal = true});
  lemo::v1::RunEvent event;
  event.mutable_warning()->set_message("a\x1b[2Jb\rc\x7f");
  EXPECT_EQ(formatter.Format(event), "warning: a?[2Jb?c?\n");
}

TEST(Pretty, ColourOnlyWhenAsked) {
  lemo::v1::RunEvent event;
  event.mutable_warning()->set_message("m");
  EXPECT_THAT(PrettyFormatter({.color = true}).Format(event), HasSubstr("\x1b["));
  EXPECT_THAT(PrettyFormatter({.color = false}).Format(event), Not(HasSubstr("\x1b[")));
}

}  // namespace
}  // namespace lemo::train
