// lemo plan, and what a job says of its contract.
#include <fstream>
#include <sstream>

#include "gmock/gmock.h"
#include "nlohmann/json.hpp"
#include "tests/integration/cli/run_lemo.h"

namespace lemo::cli {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::SizeIs;

constexpr int64_t kMiB = int64_t{1} << 20;

lemo::v1::Offer MakeOffer(const std::string& id, int64_t bytes, double seconds, double kept) {
  lemo::v1::Offer offer;
  offer.set_id(id);
  offer.set_ranks(1);
  offer.set_window(512);
  offer.set_micro_batch_sequences(2);
  lemo::v1::LayerPolicy& layers = *offer.add_storage();
  layers.set_last(3);
  layers.set_policy("attn_out");
  offer.mutable_overrides()->mutable_memory()->set_policy("attn_out");
  offer.set_device("cpu");
  offer.mutable_expected()->set_total(bytes - kMiB);
  offer.mutable_high()->set_total(bytes);
  offer.mutable_high()->set_weights(5 * kMiB);
  offer.mutable_step()->set_total(0.5);
  offer.mutable_step()->set_forward(0.2);
  offer.set_tokens_per_second(4096);
  offer.set_run_seconds(seconds);
  offer.set_device_seconds(seconds);
  offer.set_kept(kept);
  offer.set_quality(kept >= 1 ? "every row is computed" : "not measured");
  offer.mutable_start_time()->set_seconds(1'800'000'000);
  offer.mutable_finish_time()->set_seconds(1'800'000'100);
  return offer;
}

class PlanTest : public CliTest {
 protected:
  void SetUp() override {
    Write("rows.jsonl", "{\"text\": \"a\"}\n");
    Write("models/tiny/config.json", "{}");
    Write("job.yaml",
          "run:\n"
          "  model: {path: models/tiny}\n"
          "  data: {train: [{path: rows.jsonl}]}\n"
          "  train: {steps: 2}\n");
    lemo::v1::PlanResult& plan = *state_.plan.mutable_plan();
    *plan.add_offers() = MakeOffer("1111111122", 20 * kMiB, 3600, 1);
    *plan.add_offers() = MakeOffer("1111111133", 90 * kMiB, 60, 0.5);
    plan.mutable_offers(1)->set_start_reason("needs 1 device; all that fit are busy");
    plan.set_preferred("1111111133");
    plan.set_candidates(24);
    plan.mutable_rates()->set_type("cpu");
    plan.add_notes("bytes are exact");
  }
};

TEST_F(PlanTest, ShowsATableThatAPersonCanChooseFrom) {
  const Outcome plan = Run({"plan", "job.yaml", "--max-memory", "1GiB", "--min-keep", "0.25",
                            "--max-device-hours", "2", "--ranks", "1,2", "--prefer", "fastest"});
  EXPECT_EQ(plan.code, 0) << plan.err;
  // Ids with as many digits as tell them apart.
  EXPECT_THAT(
      plan.out,
      AllOf(HasSubstr("2 offers of 24 candidates"), HasSubstr("111111112"), HasSubstr("111111113"),
            HasSubstr("20.0 MiB"), HasSubstr("90.0 MiB"), HasSubstr("1 h 0 min"), HasSubstr("4.1k"),
            HasSubstr("exact"), HasSubstr("not measured"), HasSubstr("50.0 %"),
            HasSubstr("attn_out x4"), HasSubstr("now"), HasSubstr("all that fit are busy"),
            HasSubstr("2027-01-15T08:01:40Z"), HasSubstr("note: bytes are exact")));
  EXPECT_THAT(plan.err, HasSubstr("lemo job submit job.yaml --offer ID"));
  ASSERT_THAT(state_.plans, SizeIs(1));
  const lemo::v1::JobSpec& spec = state_.plans[0].spec();
  EXPECT_EQ(spec.run().data().train(0).path(), "files/f1");
  EXPECT_EQ(spec.plan().max_memory_bytes(), int64_t{1} << 30);
  EXPECT_EQ(spec.plan().min_keep(), 0.25);
  EXPECT_EQ(spec.plan().max_device_hours(), 2);
  EXPECT_EQ(spec.plan().prefer(), "fastest");
  EXPECT_THAT(spec.plan().ranks(), ElementsAre(1, 2));
}

TEST_F(PlanTest, ExplainsAndDraws) {
  const Outcome plan = Run({"plan", "job.yaml", "--explain", "--plot", "front.svg"});
  EXPECT_EQ(plan.code, 0) << plan.err;
  EXPECT_THAT(plan.out,
              AllOf(HasSubstr("offer 1111111133\n"), Not(HasSubstr("offer 1111111122\n")),
                    HasSubstr("weights"), HasSubstr("5.0 MiB"), HasSubstr("forward 0.2"),
                    HasSubstr("2048 of a step / 0.5 s = 4096"), HasSubstr("120 steps x 0.5 s"),
                    HasSubstr("1 rank x 0.01667 h"), HasSubstr("\"policy\":\"attn_out\"")));
  std::ifstream file(directory_ / "front.svg");
  std::stringstream svg;
  svg << file.rdbuf();
  EXPECT_THAT(svg.str(), AllOf(HasSubstr("<svg xmlns"), HasSubstr("</svg>"),
                               HasSubstr("11111111: 90.0 MiB"), Not(HasSubstr("href"))));
}

// Which rates the seconds stand on, operator by operator, and which runs they were corrected by.
TEST_F(PlanTest, ExplainsWhereTheTimeComesFrom) {
  lemo::v1::PlanResult& plan = *state_.plan.mutable_plan();
  lemo::v1::Calibration& calibration = *plan.mutable_rates()->mutable_calibration();
  calibration.set_host("node-7");
  calibration.set_version("0.1.0");
  calibration.mutable_time()->set_seconds(1'800'000'000);
  calibration.set_seconds(30);
  lemo::v1::LinkRate& link = *calibration.add_links();
  link.set_ranks(2);
  link.set_latency_seconds(2e-5);
  link.set_bytes_per_second(1 << 30);
  lemo::v1::Offer& offer = *plan.mutable_offers(1);
  offer.mutable_forecast()->set_family("llama");
  offer.mutable_forecast()->set_shape_class("width 256, window 512, adapters");
  offer.mutable_step()->set_backward(0.2);
  offer.mutable_step()->set_total(0.432);
  offer.set_run_seconds(100 * 0.432 + 7 + 0.25 + 0.5);
  offer.set_evaluation_seconds(7);
  offer.set_evaluations(3);
  offer.set_shadow_seconds(0.25);
  offer.set_rehearsal_seconds(0.5);
  for (lemo::v1::Offer& of : *plan.mutable_offers()) {
    of.mutable_correction()->set_ratio(1.08);
    of.mutable_correction()->set_runs(5);
  }
  lemo::v1::OperatorSeconds& products = *offer.add_operators();
  products.set_name("products");
  products.set_amount(3e10);
  products.set_seconds(0.3);
  offer.add_operators()->set_name("gather");
  lemo::v1::RunTime& run = *plan.add_history();
  run.set_job("jobs/finished");
  run.mutable_forecast()->set_predicted_step_seconds(0.5);
  run.mutable_forecast()->set_measured_step_seconds(0.54);
  EXPECT_THAT(Run({"plan", "job.yaml"}).out, HasSubstr("times: x1.08 from 5 finished runs\n"));
  const Outcome explained = Run({"plan", "job.yaml", "--explain"});
  EXPECT_EQ(explained.code, 0) << explained.err;
  EXPECT_THAT(explained.out,
              AllOf(HasSubstr("= 0.4 s\n"),
                    HasSubstr("x1.08 from 5 finished runs of llama, width 256, window 512, "
                              "adapters: 0.432 s\n"),
                    HasSubstr("FLOP"), HasSubstr("not known"),
                    HasSubstr("runs: 100 steps x 0.432 s + the largest micro-batch first 0.5 s + "
                              "3 evaluations 7 s + shadows 0.25 s = "),
                    HasSubstr("measured by operator on node-7 at 2027-01-15T08:00:00Z by lemo "
                              "0.1.0, 30 s at a load of"),
                    HasSubstr("sums over 2 ranks: 0.02 ms and 1.0 GiB a second"),
                    HasSubstr("jobs/finished"), HasSubstr("0.54 s")));
}

TEST_F(PlanTest, SaysWhatABoundWouldHaveToBecome) {
  lemo::v1::PlanResult& plan = *state_.plan.mutable_plan();
  *plan.add_nearest() = plan.offers(0);
  plan.clear_offers();
  plan.clear_preferred();
  lemo::v1::BoundAdvice& advice = *plan.add_advice();
  advice.set_bound("max_memory_bytes");
  advice.set_asked(1024);
  advice.set_needed(20.0 * kMiB);
  const Outcome nothing = Run({"plan", "job.yaml", "--max-memory", "1KiB"});
  EXPECT_EQ(nothing.code, 2);
  EXPECT_THAT(nothing.out, AllOf(HasSubstr("Nothing of 24 candidates is within the bounds"),
                                 HasSubstr("max_memory_bytes is 1.0 KiB; 20.0 MiB would do")));
}

TEST_F(PlanTest, PrintsTheAnswerAsJson) {
  const Outcome plan = Run({"plan", "job.yaml", "-o", "json"});
  EXPECT_EQ(plan.code, 0) << plan.err;
  const nlohmann::json json = nlohmann::json::parse(plan.out);
  EXPECT_EQ(json["plan"]["offers"][1]["id"], "1111111133");
}

TEST_F(PlanTest, ATimeMayBeCountedFromNow) {
  EXPECT_EQ(Run({"plan", "job.yaml", "--finish-by", "2h30m"}).code, 0);
  EXPECT_THAT(state_.plans.at(0).spec().plan().finish_by(),
              testing::MatchesRegex("20..-..-..T..:..:..Z"));
  const Outcome wrong = Run({"plan", "job.yaml", "--finish-by", "soon"});
  EXPECT_EQ(wrong.code, 2);
  EXPECT_THAT(wrong.err, HasSubstr("--finish-by"));
}

TEST_F(PlanTest, AJobTakesAnOffer) {
  EXPECT_EQ(Run({"job", "submit", "job.yaml", "--offer", "11111111"}).code, 0);
  ASSERT_THAT(state_.submits, SizeIs(1));
  EXPECT_EQ(state_.submits[0].spec().plan().offer(), "11111111");
  EXPECT_EQ(Run({"job", "submit", "job.yaml"}).code, 0);
  EXPECT_FALSE(state_.submits.at(1).spec().has_plan());
  EXPECT_EQ(Run({"job", "submit", "job.yaml", "--prefer", "cheapest"}).code, 2);
}

TEST_F(PlanTest, AJobShowsItsBudgetBesideItsUse) {
  lemo::v1::Job job;
  job.set_name("jobs/a");
  job.set_state(lemo::v1::Job::RUNNING);
  *job.mutable_contract()->mutable_offer() = MakeOffer("1111111122", 20 * kMiB, 3600, 1);
  job.mutable_contract()->set_memory_bytes(20 * kMiB);
  job.mutable_update_time()->set_seconds(1'800'000'000);
  lemo::v1::Progress& progress = *job.mutable_progress();
  progress.set_step(1);
  progress.set_steps(2);
  progress.set_step_seconds(0.75);
  progress.set_eta_seconds(60);
  progress.set_peak_bytes(15 * kMiB);
  progress.mutable_peak()->set_weights(4 * kMiB);
  progress.mutable_peak()->set_total(15 * kMiB);
  state_.jobs["jobs/a"] = job;
  const Outcome shown = Run({"job", "get", "a"});
  EXPECT_EQ(shown.code, 0) << shown.err;
  EXPECT_THAT(
      shown.out,
      AllOf(HasSubstr("15.0 MiB of 20.0 MiB"), HasSubstr("contract"), HasSubstr("1111111122"),
            HasSubstr("weights"), HasSubstr("4.0 MiB"), HasSubstr("5.0 MiB"), HasSubstr("0.75 s"),
            HasSubstr("2027-01-15T08:01:40Z"), HasSubstr("2027-01-15T08:01:00Z expected now")));
}

}  // namespace
}  // namespace lemo::cli
