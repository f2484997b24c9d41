#include "worker/train/calibrate/calibrate.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/format.h"
#include "common/message_json.h"
#include "common/status_macros.h"
#include "google/protobuf/util/time_util.h"
#include "worker/train/calibrate/trials.h"
#include "worker/train/loop/device.h"
#include "worker/train/loop/engine.h"
#include "worker/train/loop/plan_run.h"
#include "worker/train/loop/publisher.h"
#include "worker/train/model/family/family.h"
#include "worker/train/plan/rates.h"
#include "worker/train/spec/spec.h"

namespace lemo::train {
namespace {

using Clock = std::chrono::steady_clock;

// A go is as many calls as take this long: a clock's tick, and what a call finds in no cache, are
// little of it.
constexpr double kGoSeconds = 2e-3;
constexpr int kMostCalls = 1000;
constexpr double kLoadOfABusyHost = 0.5;
// Bytes of the sums that a link is measured with: latency alone, and hardly any.
constexpr int64_t kSmallSum = 1 << 10, kLargeSum = 8 << 20;
constexpr int64_t kTinyRows = 16;
constexpr double kTimeoutSeconds = 120;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double Median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<int64_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// Seconds of one call.
double Go(at::Device device, int calls, const std::function<void()>& work) {
  Synchronize(device);
  const auto start = Clock::now();
  for (int i = 0; i < calls; ++i) work();
  Synchronize(device);
  return SecondsSince(start) / calls;
}

double HostLoad() {
  double load = 0;
  return ::getloadavg(&load, 1) == 1 ? load : 0;
}

std::string HostName() {
  char name[256] = {};
  return ::gethostname(name, sizeof(name) - 1) == 0 ? name : "";
}

// Calls `go` for each of `count` things in turn until `seconds` are over, each once at least.
void TakeTurns(size_t count, double seconds, const std::function<void(size_t)>& go,
               const std::function<void(double)>& progress) {
  const auto start = Clock::now();
  for (int round = 0; round == 0 || SecondsSince(start) < seconds; ++round) {
    for (size_t i = 0; i < count; ++i) {
      if (round > 0 && SecondsSince(start) >= seconds) return;
      go(i);
      const double of_first = static_cast<double>(i + 1) / static_cast<double>(count);
      progress(std::min(1.0, std::max(SecondsSince(start) / std::max(seconds, 1e-9),
                                      round == 0 && seconds <= 0 ? of_first : 0.0)));
    }
  }
}

void MeasureOperators(const Compute& compute, double seconds,
                      const std::function<void(double)>& progress, lemo::v1::DeviceRates* rates) {
  const at::NoGradGuard no_grad;
  const std::vector<Trial> trials = OperatorTrials(compute);
  std::vector<int> calls(trials.size());
  std::vector<std::vector<double>> taken(trials.size());
  const auto go = [&](size_t i) {
    if (calls[i] == 0) {
      Go(compute.device, 1, trials[i].work);  // libraries, and memory that is new
      const double once = Go(compute.device, 1, trials[i].work);
      calls[i] = static_cast<int>(
          std::clamp(std::ceil(kGoSeconds / std::max(once, 1e-9)), 1.0, double{kMostCalls}));
    }
    taken[i].push_back(Go(compute.device, calls[i], trials[i].work));
  };
  TakeTurns(trials.size(), seconds, go, progress);

  std::map<std::pair<planner::Operator, double>, lemo::v1::OperatorRates> curves;
  for (size_t i = 0; i < trials.size(); ++i) {
    const Trial& trial = trials[i];
    lemo::v1::OperatorRates& curve = curves[{trial.op, trial.width}];
    curve.set_name(std::string(planner::OperatorName(trial.op)));
    curve.set_width(trial.width);
    lemo::v1::RatePoint& point = *curve.add_points();
    point.set_size(trial.size);
    point.set_rate(trial.amount / Median(taken[i]));
    // What programs that know of two kernels alone go by.
    if (trial.op == planner::Operator::kProducts) rates->set_products(point.rate());
    if (trial.op == planner::Operator::kAttention && trial.width == 64) {
      rates->set_attention(point.rate());
    }
  }
  lemo::v1::Calibration& calibration = *rates->mutable_calibration();
  calibration.clear_operators();
  for (const auto& [key, curve] : curves) *calibration.add_operators() = curve;
}

// The engine of a model of so many layers on which nothing takes time but to call it.
absl::StatusOr<std::unique_ptr<Engine>> TinyEngine(const Compute& compute, int64_t layers) {
  LEMO_ASSIGN_OR_RETURN(const DecoderConfig config,
                        ParseDecoderConfig({{"architectures", {"LlamaForCausalLM"}},
                                            {"model_type", "llama"},
                                            {"hidden_size", 64},
                                            {"num_hidden_layers", layers},
                                            {"num_attention_heads", 2},
                                            {"num_key_value_heads", 2},
                                            {"intermediate_size", 64},
                                            {"max_position_embeddings", kTinyRows},
                                            {"vocab_size", 64}}));
  lemo::v1::RunSpec spec;
  spec.mutable_model()->mutable_random_init()->set_seed(1);
  spec.mutable_tuner()->mutable_lora()->set_rank(2);
  spec.mutable_tuner()->mutable_lora()->add_targets("q_proj");
  spec.mutable_tuner()->mutable_lora()->add_targets("v_proj");
  spec.mutable_train()->set_steps(1);
  FillDefaults(&spec);
  return Engine::Create(spec, config, compute, kTinyRows);
}

Batch TinyBatch() {
  MicroBatch rows;
  for (int32_t i = 0; i < kTinyRows; ++i) {
    rows.tokens.push_back(1 + i);
    rows.labels.push_back(i + 1 < kTinyRows ? 2 + i : kIgnoreLabel);
    rows.positions.push_back(i);
  }
  rows.document_starts = {0, kTinyRows};
  rows.document_places = {0};
  rows.document_rows = {0};
  Batch batch;
  batch.tokens = kTinyRows;
  batch.labelled_tokens = kTinyRows - 1;
  batch.rounds = batch.sequences = 1;
  batch.micro_batches = {std::move(rows)};
  return batch;
}

// Two depths tell a layer's part from the step's.
absl::Status MeasureCalls(const Compute& compute, double seconds,
                          const std::function<void(double)>& progress,
                          lemo::v1::Calibration* calibration) {
  constexpr int64_t kDepths[] = {2, 8};
  std::unique_ptr<Engine> engines[2];
  for (int i = 0; i < 2; ++i) {
    LEMO_ASSIGN_OR_RETURN(engines[i], TinyEngine(compute, kDepths[i]));
  }
  const Batch batch = TinyBatch();
  std::vector<double> taken[2];
  absl::Status status;
  int64_t step = 0;
  const auto go = [&](size_t i) {
    const auto once = [&, i] {
      const absl::StatusOr<StepResult> result =
          engines[i]->Step(batch, {.step = step++, .steps = 1 << 30, .learning_rate = 1e-6});
      if (!result.ok()) status = result.status();
    };
    if (taken[i].empty()) Go(compute.device, 2, once);
    taken[i].push_back(Go(compute.device, 3, once));
  };
  TakeTurns(2, seconds, go, progress);
  LEMO_RETURN_IF_ERROR(status);
  const double shallow = Median(taken[0]), deep = Median(taken[1]);
  const double layer =
      std::max(0.0, (deep - shallow) / static_cast<double>(kDepths[1] - kDepths[0]));
  calibration->set_layer_seconds(layer);
  calibration->set_step_seconds(std::max(0.0, shallow - static_cast<double>(kDepths[0]) * layer));
  return absl::OkStatus();
}

// Bytes a second to the host and back.
double MeasureCopies(const Compute& compute) {
  if (compute.device.is_cpu()) return 0;
  constexpr int64_t kBytes = 64 << 20;
  const at::Tensor device =
      at::ones({kBytes}, at::TensorOptions().dtype(at::kByte).device(compute.device));
  const at::Tensor host = at::empty({kBytes}, at::TensorOptions().dtype(at::kByte)).pin_memory();
  std::vector<double> taken;
  for (int i = 0; i < 6; ++i) {
    taken.push_back(Go(compute.device, 1, [&] {
      host.copy_(device);
      device.copy_(host);
    }));
  }
  return 2 * static_cast<double>(kBytes) / Median(taken);
}

// All ranks call.
lemo::v1::LinkRate MeasureLink(const Compute& compute, bool quick, Gang& gang) {
  // Ranks that come late are waited for in the sum before the one that is timed.
  const auto of = [&](int64_t bytes, int goes) {
    const at::Tensor tensor =
        at::zeros({bytes / 4}, at::TensorOptions().dtype(at::kFloat).device(compute.device));
    std::vector<double> taken;
    for (int i = 0; i <= goes; ++i) {
      gang.world().Barrier();
      taken.push_back(
          Go(compute.device, 1, [&] { gang.data().AllReduce(tensor, ReduceOp::kSum).Wait(); }));
    }
    return Median(std::vector<double>(taken.begin() + 1, taken.end()));
  };
  lemo::v1::LinkRate link;
  link.set_ranks(gang.size());
  link.set_nodes(std::max(1, gang.size() / std::max(1, gang.node().size())));
  const double latency = of(kSmallSum, quick ? 5 : 100);
  const double large = of(kLargeSum, quick ? 2 : 20);
  const double ring = 2.0 * kLargeSum * (gang.size() - 1) / gang.size();
  link.set_latency_seconds(latency);
  link.set_bytes_per_second(ring / std::max(large - latency, 0.1 * large));
  return link;
}

std::string RatesText(const lemo::v1::DeviceRates& rates) {
  const lemo::v1::Calibration& calibration = rates.calibration();
  std::string text = absl::StrCat(RatesInWords(rates), "\n");
  absl::StrAppendFormat(&text, "  %-20s %6s %10s %14s\n", "operator", "width", "size", "a second");
  for (const lemo::v1::OperatorRates& of : calibration.operators()) {
    for (const lemo::v1::RatePoint& point : of.points()) {
      absl::StrAppendFormat(&text, "  %-20s %6s %10.0f %14.3g\n", of.name(),
                            of.width() > 0 ? absl::StrCat(of.width()) : "", point.size(),
                            point.rate());
    }
  }
  absl::StrAppendFormat(&text, "  beside them: %.3g ms a layer and micro-batch, %.3g ms a step\n",
                        1e3 * calibration.layer_seconds(), 1e3 * calibration.step_seconds());
  for (const lemo::v1::LinkRate& link : calibration.links()) {
    absl::StrAppendFormat(&text, "  sums over %d ranks: %.3g ms, and %.3g bytes a second\n",
                          link.ranks(), 1e3 * link.latency_seconds(), link.bytes_per_second());
  }
  return text;
}

}  // namespace

absl::StatusOr<std::string> Calibrate(
    const CalibrateOptions& options, Gang& gang,
    const std::function<void(const std::string& what, double share)>& progress) {
  ShareCores(gang.node().size());
  LEMO_ASSIGN_OR_RETURN(const Compute compute,
                        ChooseCompute(options.device, options.compute_type, gang.node().rank()));
  const std::filesystem::path file =
      options.rates_file.empty() ? DefaultRatesFile() : options.rates_file;
  lemo::v1::ParallelSpec parallel;
  parallel.set_data(gang.size());
  // Ranks measure for as long as they are told, and one may take some seconds more than another.
  parallel.set_timeout_seconds(kTimeoutSeconds + options.seconds);
  LEMO_RETURN_IF_ERROR(gang.Arrange(&parallel, compute.device));
  lemo::v1::DeviceRates rates = DeviceOf(compute);
  if (gang.node().size() > 1) rates.set_ranks(gang.node().size());
  absl::StatusOr<RatesList> before = RatesList();
  if (gang.leads()) {
    if (file.empty()) {
      before = absl::InvalidArgumentError("calibrate: give --rates FILE: there is no home for one");
    } else if (before = ReadRatesFile(file); absl::IsNotFound(before.status())) {
      before = RatesList();
    }
  }
  LEMO_RETURN_IF_ERROR(Agree(gang.world(), before.status()));
  lemo::v1::Calibration& calibration = *rates.mutable_calibration();
  // Links to more machines or fewer were measured by other gangs.
  if (const auto* known = FindRates(*before, rates, kLemoVersion)) {
    *calibration.mutable_links() = known->calibration().links();
  }
  calibration.set_version(kLemoVersion);
  calibration.set_host(HostName());
  calibration.set_load(HostLoad());
  *calibration.mutable_time() = google::protobuf::util::TimeUtil::GetCurrentTime();
  calibration.mutable_time()->set_nanos(0);

  const auto start = Clock::now();
  constexpr double kOfOperators = 0.85;
  MeasureOperators(
      compute, kOfOperators * options.seconds,
      [&](double share) { progress("operators", kOfOperators * share); }, &rates);
  LEMO_RETURN_IF_ERROR(MeasureCalls(
      compute, (1 - kOfOperators) * options.seconds,
      [&](double share) { progress("calls", kOfOperators + (1 - kOfOperators) * share); },
      &calibration));
  calibration.set_copy_bytes_per_second(MeasureCopies(compute));
  if (!gang.alone()) {
    progress("sums between ranks", 1);
    const lemo::v1::LinkRate link = MeasureLink(compute, options.seconds < 1, gang);
    auto* links = calibration.mutable_links();
    links->erase(std::remove_if(links->begin(), links->end(),
                                [&](const auto& other) { return other.ranks() == link.ranks(); }),
                 links->end());
    *links->Add() = link;
  }
  calibration.set_seconds(SecondsSince(start));
  LEMO_RETURN_IF_ERROR(
      Agree(gang.world(), gang.leads() ? PutRates(rates, file) : absl::OkStatus()));
  if (!gang.leads()) return "";
  if (options.json) return MessageToJson(rates, {}).dump(1) + "\n";
  std::string text = RatesText(rates);
  if (calibration.load() > kLoadOfABusyHost) {
    absl::StrAppendFormat(&text,
                          "The host was busy (load %.1f), so that rates may be too low: calibrate "
                          "again when it is not.\n",
                          calibration.load());
  }
  return absl::StrCat(text, "written to ", file.string(), "\n");
}

}  // namespace lemo::train
