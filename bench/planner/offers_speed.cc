// How long the planner takes for ten thousand candidates: a model of 32 layers, three windows,
// eight choices of kept rows, worlds of up to eight devices. Prints the processor time of each of
// five goes; exit code 1 where their median is above the goal.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <vector>

#include "planner/offers/offers.h"

namespace {

using lemo::planner::OfferRequest;
using lemo::planner::Offers;
using lemo::planner::Scope;
using lemo::planner::Sharding;

constexpr double kGoalSeconds = 0.1;  // for this many
constexpr double kCandidates = 10000;

OfferRequest Request() {
  OfferRequest request;
  request.shape = {.hidden = 4096,
                   .heads = 32,
                   .kv_heads = 8,
                   .head_dim = 128,
                   .intermediate = 14336,
                   .vocabulary = 128256};
  request.shape.layers = 32;
  request.element_bytes = 2;
  request.tuning.adapters = {8, 8, 8, 8, 0, 0, 0};
  for (int64_t length = 256; length <= 16384; length += 256) {
    request.data.documents.push_back({length, 20000 - length});
  }
  request.window = 16384;
  request.short_windows = {8192, 4096};
  request.batch_sequences = 16;
  request.steps = 1000;
  request.evaluated = {.rows = 1 << 20, .longest = 16384, .pairs = 8e9, .times = 11, .shadows = 20};
  request.evaluated.shadow_rows = 1 << 16;
  for (const double keep : {0.8, 0.6, 0.5, 0.4}) {
    request.tokens.push_back({.scope = Scope::kStack, .keep = std::vector<double>(32, keep)});
    std::vector<double> later(32, 1.0);
    std::fill(later.begin() + 16, later.end(), keep);
    request.tokens.push_back({.scope = Scope::kLayer, .keep = later, .mlp_off = true});
  }
  request.world_sizes = {1, 2, 4, 8};
  request.shardings = {Sharding::kNone, Sharding::kOptimizer};
  request.loss_segments = {0, 512};
  request.micro_batch_sequences = {1, 2, 4};
  request.mix_points = 12;
  request.bounds.memory_bytes_max = int64_t{80} << 30;
  request.device = {.type = "figures of a fast accelerator",
                    .compute = {4e14, 3e14},
                    .copy_bytes_per_second = 5e10,
                    .links = {{.ranks = 2, .latency_seconds = 1e-5, .bytes_per_second = 2e11},
                              {.ranks = 8, .latency_seconds = 3e-5, .bytes_per_second = 2e11}},
                    .own_memory = true,
                    .layer_seconds = 2e-4};
  // As many curves and points as a calibrated device has.
  for (int op = 0; op < lemo::planner::kOperators; ++op) {
    for (const double width : {32.0, 64.0, 128.0}) {
      request.device.operators.Set(static_cast<lemo::planner::Operator>(op), width,
                                   {{1e3, 1e11}, {1e5, 5e11}, {1e6, 1e12}, {1e8, 2e12}});
    }
  }
  return request;
}

}  // namespace

int main() {
  const OfferRequest request = Request();
  std::vector<double> seconds;
  Offers offers;
  for (int i = 0; i < 5; ++i) {
    const std::clock_t start = std::clock();
    offers = lemo::planner::MakeOffers(request);
    seconds.push_back(static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC);
    std::printf("%lld candidates, %zu offers: %.1f ms\n", static_cast<long long>(offers.candidates),
                offers.front.size(), 1e3 * seconds.back());
  }
  std::sort(seconds.begin(), seconds.end());
  const double median =
      seconds[seconds.size() / 2] * kCandidates / static_cast<double>(offers.candidates);
  std::printf("median for %.0f: %.1f ms; goal %.0f ms\n", kCandidates, 1e3 * median,
              1e3 * kGoalSeconds);
  return median <= kGoalSeconds && offers.candidates >= kCandidates ? 0 : 1;
}
