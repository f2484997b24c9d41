// A run's own forecast, and which finished runs correct the next one's.
#include "worker/train/plan/forecast.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "common/violations.h"
#include "nlohmann/json.hpp"
#include "tests/support/small_llama.h"
#include "worker/train/plan/rates.h"
#include "worker/train/spec/spec.h"

namespace lemo::train {
namespace {

using History = google::protobuf::RepeatedPtrField<lemo::v1::RunTime>;

lemo::v1::RunSpec SpecOf(const nlohmann::json& changes) {
  nlohmann::json json = {
      {"model", {{"path", "m"}}},
      {"data", {{"train", {{{"path", "a.jsonl"}}}}, {"max_length", 1024}}},
      {"tuner", {{"lora", {{"rank", 8}, {"targets", {"q_proj", "v_proj"}}}}}},
      {"train", {{"steps", 10}, {"batch_sequences", 4}, {"micro_batch_tokens", 2048}}},
      {"output", {{"dir", "out"}}}};
  json.merge_patch(changes);
  Violations violations;
  lemo::v1::RunSpec spec = ParseRunSpec(json.dump(), "run.json", &violations);
  EXPECT_TRUE(violations.ToStatus().ok()) << violations.ToStatus();
  FillDefaults(&spec);
  return spec;
}

lemo::v1::DeviceRates Rates() {
  lemo::v1::DeviceRates rates;
  rates.set_type("cpu");
  rates.set_compute_type("float32");
  rates.set_threads(1);
  rates.set_products(1e11);
  rates.set_attention(5e10);
  rates.mutable_calibration()->set_layer_seconds(1e-3);
  return rates;
}

PlanFacts Facts(const lemo::v1::DeviceRates& rates) {
  return {.documents = {{1024, 16}}, .device = PlannerRates(rates, /*own_memory=*/false)};
}

lemo::v1::RunForecast Of(const nlohmann::json& changes, const lemo::v1::DeviceRates& rates) {
  return ForecastOfRun(SpecOf(changes), SmallLlama(), Facts(rates), rates);
}

TEST(Forecast, OfARunIsThatOfItsOffer) {
  const lemo::v1::DeviceRates rates = Rates();
  const nlohmann::json changes = {
      {"memory",
       {{"policy", "mlp"}, {"layers", {{{"first", 2}, {"last", 3}, {"policy", "input"}}}}}}};
  const lemo::v1::RunForecast forecast = Of(changes, rates);
  EXPECT_EQ(forecast.family(), "llama");
  EXPECT_EQ(forecast.shape_class(), "width 256, window 1024, adapters");
  EXPECT_EQ(forecast.device(), "cpu");
  EXPECT_EQ(forecast.rates(), RatesName(rates));
  const auto request = PlanRequestOf(SpecOf(changes), SmallLlama(), Facts(rates));
  ASSERT_TRUE(request.ok()) << request.status();
  const planner::Offer offer = PriceRun(*request, {.window = 1024,
                                                   .micro_batch_sequences = 2,
                                                   .storage = {{planner::Stored::kMlp, false},
                                                               {planner::Stored::kMlp, false},
                                                               {planner::Stored::kInput, false},
                                                               {planner::Stored::kInput, false}}});
  EXPECT_EQ(forecast.predicted_step_seconds(), offer.step.Foretold());
  EXPECT_EQ(forecast.predicted_peak_bytes(), offer.memory.expected.total);
  EXPECT_EQ(forecast.high_peak_bytes(), offer.memory.high.total);
  // What it is held to it will not have.
  nlohmann::json held = changes;
  held["memory"]["budget_bytes"] = offer.memory.expected.total - 1;
  EXPECT_EQ(Of(held, rates).predicted_peak_bytes(), offer.memory.expected.total - 1);
  EXPECT_EQ(Of(held, rates).high_peak_bytes(), offer.memory.expected.total - 1);
  held["memory"]["budget_bytes"] = offer.memory.high.total + 1;
  EXPECT_EQ(Of(held, rates).high_peak_bytes(), offer.memory.high.total);
  // More kept is more bytes and less time.
  const lemo::v1::RunForecast all = Of({{"memory", {{"policy", "all"}}}}, rates);
  EXPECT_GT(all.predicted_peak_bytes(), forecast.predicted_peak_bytes());
  EXPECT_LT(all.predicted_step_seconds(), forecast.predicted_step_seconds());
}

TEST(Forecast, BytesNeedNoRates) {
  const lemo::v1::RunForecast with = Of(nlohmann::json::object(), Rates());
  lemo::v1::DeviceRates none;
  none.set_type("cpu");
  none.set_threads(1);
  const lemo::v1::RunForecast without = Of(nlohmann::json::object(), none);
  EXPECT_EQ(without.predicted_peak_bytes(), with.predicted_peak_bytes());
  EXPECT_EQ(without.predicted_step_seconds(), 0);
  EXPECT_EQ(without.rates(), "");
}

TEST(Forecast, OfWhatCannotBePlannedIsNone) {
  const lemo::v1::RunForecast forecast =
      Of({{"tokens", {{"policy", "predictor"}, {"scope", "layer"}}}}, Rates());
  EXPECT_EQ(forecast.family(), "llama");
  EXPECT_EQ(forecast.predicted_peak_bytes(), 0);
  EXPECT_EQ(forecast.predicted_step_seconds(), 0);
}

lemo::v1::RunTime RunOf(const std::string& job, const lemo::v1::RunForecast& kind, double predicted,
                        double measured) {
  lemo::v1::RunTime run;
  run.set_job(job);
  *run.mutable_forecast() = kind;
  run.mutable_forecast()->set_predicted_step_seconds(predicted);
  run.mutable_forecast()->set_measured_step_seconds(measured);
  return run;
}

// Every kind has its own factor; the rates are part of the kind, as a ratio to others says nothing.
TEST(History, OnlyRunsOfTheKindCount) {
  lemo::v1::RunForecast kind;
  kind.set_family("llama");
  kind.set_shape_class("width 256, window 1024, adapters");
  kind.set_device("cpu");
  kind.set_rates("01234567");
  History history;
  *history.Add() = RunOf("jobs/a", kind, 1, 1.2);
  for (int i = 0; i < 4; ++i) {
    lemo::v1::RunForecast other = kind;
    if (i == 0) other.set_family("opt");
    if (i == 1) other.set_shape_class("width 256, window 2048, adapters");
    if (i == 2) other.set_device("cuda:0");
    if (i == 3) other.set_rates("76543210");
    *history.Add() = RunOf("jobs/other", other, 1, 3);
  }
  EXPECT_EQ(FindHistory(history, kind).correction.ratio, 1);  // one is not enough
  EXPECT_EQ(FindHistory(history, kind).runs.size(), 1u);
  *history.Add() = RunOf("jobs/a", kind, 1, 1.2);  // named twice
  *history.Add() = RunOf("jobs/b", kind, 0, 1);    // foretold no time
  EXPECT_EQ(FindHistory(history, kind).runs.size(), 1u);
  *history.Add() = RunOf("jobs/c", kind, 2, 2.4);
  const HistoryOfKind found = FindHistory(history, kind);
  ASSERT_EQ(found.runs.size(), 2u);
  EXPECT_EQ(found.runs[1].job(), "jobs/c");
  EXPECT_NEAR(found.correction.ratio, 1.2, 1e-12);
}

}  // namespace
}  // namespace lemo::train
