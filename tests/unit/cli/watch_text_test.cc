#include "cli/watch_text.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace lemo::cli {
namespace {

using lemo::v1::Job;
using lemo::v1::JobEvent;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

JobEvent At(int64_t sequence) {
  JobEvent event;
  event.set_job("jobs/a");
  event.set_sequence(sequence);
  event.mutable_time()->set_seconds(1767225600 + sequence);
  return event;
}

JobEvent State(int64_t sequence, Job::State from, Job::State to, const std::string& reason) {
  JobEvent event = At(sequence);
  event.mutable_state()->set_from(from);
  event.mutable_state()->set_to(to);
  event.mutable_state()->set_reason(reason);
  return event;
}

JobEvent Step(int64_t sequence, int step) {
  JobEvent event = At(sequence);
  lemo::v1::StepEvent& made = *event.mutable_run()->mutable_step();
  made.set_step(step);
  made.set_steps(40);
  made.set_loss(2.90625);
  made.set_learning_rate(1e-3);
  made.set_grad_norm(0.5625);
  made.set_tokens_per_second(16384);
  made.set_peak_bytes(432013312);
  made.set_eta_seconds(18);
  return event;
}

JobEvent Warning(int64_t sequence, const std::string& message) {
  JobEvent event = At(sequence);
  event.mutable_run()->mutable_warning()->set_message(message);
  return event;
}

TEST(WatchText, OneLineAnEventWithoutATerminal) {
  WatchText text({});
  EXPECT_EQ(text.Event(State(1, Job::VALIDATING, Job::QUEUED, "waits for devices")),
            "2026-01-01T00:00:01Z  QUEUED      waits for devices\n");
  EXPECT_EQ(text.Event(State(2, Job::STARTING, Job::RUNNING, "")),
            "2026-01-01T00:00:02Z  RUNNING\n");
  EXPECT_EQ(text.Event(Step(3, 22)),
            "2026-01-01T00:00:03Z  step        22/40  loss 2.9062  lr 1.00e-03  grad norm 0.562  "
            "16.4k tok/s  peak 412.0 MiB  ETA 0:18\n");
  JobEvent eval = At(4);
  eval.mutable_run()->mutable_eval()->set_step(40);
  eval.mutable_run()->mutable_eval()->set_loss(2.890625);
  eval.mutable_run()->mutable_eval()->set_perplexity(18.00456);
  eval.mutable_run()->mutable_eval()->set_token_accuracy(0.5);
  EXPECT_EQ(text.Event(eval),
            "2026-01-01T00:00:04Z  eval        at step 40  loss 2.8906  perplexity 18.005  "
            "accuracy 50.0 %\n");
  EXPECT_EQ(text.Event(Warning(5, "two\nlines\x1b[2J")),
            "2026-01-01T00:00:05Z  warning     two lines?[2J\n");
  EXPECT_EQ(text.Draw(), "");
  EXPECT_EQ(text.Erase(), "");
}

TEST(WatchText, SaysWhatTheSchedulerDidToAContract) {
  WatchText text({});
  const auto change = [](lemo::v1::ContractChange::Kind kind, int64_t from, int64_t to) {
    JobEvent event = At(1);
    event.mutable_contract()->set_kind(kind);
    event.mutable_contract()->set_from_bytes(from << 20);
    event.mutable_contract()->set_to_bytes(to << 20);
    event.mutable_contract()->set_for_job("jobs/b");
    return event;
  };
  EXPECT_EQ(text.Event(change(lemo::v1::ContractChange::CUT, 8, 5)),
            "2026-01-01T00:00:01Z  contract    asked to come within 5.0 MiB instead of 8.0 MiB a "
            "rank: jobs/b waits for the room\n");
  EXPECT_EQ(text.Event(change(lemo::v1::ContractChange::WITHIN, 8, 5)),
            "2026-01-01T00:00:01Z  contract    keeps to 5.0 MiB a rank\n");
  EXPECT_EQ(text.Event(change(lemo::v1::ContractChange::RAISED, 5, 8)),
            "2026-01-01T00:00:01Z  contract    may have 8.0 MiB a rank again instead of 5.0 MiB\n");
}

TEST(WatchText, ATerminalHasOneLiveLine) {
  WatchText text({.terminal = true, .width = 120, .memory_limit = 2LL << 30});
  EXPECT_EQ(text.Event(State(1, Job::VALIDATING, Job::QUEUED, "waits for devices")), "");
  EXPECT_EQ(text.Draw(), "\r\x1b[KQUEUED  waits for devices");
  EXPECT_EQ(text.Event(State(2, Job::QUEUED, Job::RUNNING, "")), "");
  EXPECT_EQ(text.Event(Step(3, 22)), "");
  EXPECT_EQ(text.Draw(),
            "\r\x1b[KRUNNING  step 22/40  loss 2.9062  16.4k tok/s  412.0 MiB of 2.0 GiB  ETA "
            "0:18");
  // What is worth keeping scrolls away above it.
  EXPECT_EQ(text.Event(Warning(4, "watch out")),
            "\r\x1b[K2026-01-01T00:00:04Z  warning     watch out\n");
  EXPECT_THAT(text.Event(State(5, Job::RUNNING, Job::QUEUED, "the worker was lost")),
              HasSubstr("QUEUED      the worker was lost\n"));
}

TEST(WatchText, AStepThatDropsRowsSaysHowManyItKept) {
  WatchText lines({}), live({.terminal = true, .width = 120});
  live.Event(State(1, Job::STARTING, Job::RUNNING, ""));
  JobEvent step = Step(2, 22);
  lemo::v1::TokenSparsity& sparsity = *step.mutable_run()->mutable_step()->mutable_sparsity();
  for (const double share : {0.5, 0.25}) sparsity.add_attention_kept(share);
  for (const double share : {0.5, 1.0}) sparsity.add_mlp_kept(share);
  EXPECT_THAT(lines.Event(step), HasSubstr("16.4k tok/s  kept 56 %  peak 412.0 MiB"));
  live.Event(step);
  EXPECT_THAT(live.Draw(), ::testing::EndsWith("ETA 0:18  kept 56 %"));
  sparsity.add_recall(0.75);
  EXPECT_THAT(lines.Event(step), HasSubstr("kept 56 % (recall 75 %)"));
  JobEvent eval = At(3);
  eval.mutable_run()->mutable_eval()->set_loss(0.5);
  for (const double share : {0.75, 1.0}) eval.mutable_run()->mutable_eval()->add_recall(share);
  EXPECT_THAT(lines.Event(eval), HasSubstr("eval        at step 0  loss 0.5000  recall 87.5 %\n"));
  // Pictures are for the report.
  JobEvent selection = At(3);
  selection.mutable_run()->mutable_selection()->set_step(22);
  EXPECT_EQ(live.Event(selection), "");
  EXPECT_THAT(lines.Event(selection), HasSubstr("selection   blocks kept in step 22\n"));
  // A step of all rows, as while cooling down, has no share.
  live.Event(Step(4, 23));
  EXPECT_THAT(live.Draw(), Not(HasSubstr("kept")));
}

TEST(WatchText, TheLiveLineFitsANarrowTerminal) {
  WatchText text({.terminal = true, .width = 20});
  text.Event(State(1, Job::STARTING, Job::RUNNING, ""));
  text.Event(Step(2, 22));
  EXPECT_EQ(text.Draw(), "\r\x1b[KRUNNING  step 22/40");
}

TEST(WatchText, EndingsSayWhatComesNext) {
  Job job;
  job.set_name("jobs/a");
  job.set_state(Job::SUCCEEDED);
  EXPECT_THAT(WatchText::Ending(job),
              AllOf(HasSubstr("jobs/a succeeded"), HasSubstr("lemo job fetch jobs/a")));
  job.set_state(Job::FAILED);
  job.mutable_failure()->set_kind(lemo::v1::Failure::OUT_OF_MEMORY);
  job.mutable_failure()->set_message("no room");
  EXPECT_THAT(WatchText::Ending(job),
              AllOf(HasSubstr("jobs/a failed (OUT_OF_MEMORY)\n  no room\n"),
                    HasSubstr("lemo job logs jobs/a"), Not(HasSubstr("fetch"))));
  job.set_state(Job::CANCELLED);
  EXPECT_EQ(WatchText::Ending(job), "\njobs/a was cancelled\n");
}

}  // namespace
}  // namespace lemo::cli
