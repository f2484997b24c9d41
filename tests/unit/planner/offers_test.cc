// Offers of one known request: what is among them, what is preferred, what bounds do.
#include "planner/offers/offers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "planner/offers/step_time.h"
#include "planner/offers/workload.h"

namespace lemo::planner {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

OfferRequest Request() {
  OfferRequest request;
  request.shape = {.hidden = 1024,
                   .heads = 16,
                   .kv_heads = 4,
                   .head_dim = 64,
                   .intermediate = 2816,
                   .vocabulary = 32000};
  request.shape.layers = 8;
  request.tuning.adapters = {8, 8, 8, 8, 0, 0, 0};
  request.data = {.documents = {{4096, 100}}, .packing = false};
  request.window = 4096;
  request.batch_sequences = 4;
  request.steps = 100;
  request.device = {.type = "cpu", .compute = {1e11, 5e10}};
  request.offers_max = 0;
  return request;
}

TokenChoice Half(Scope scope = Scope::kStack) {
  return {.scope = scope,
          .keep = std::vector<double>(8, 0.5),
          .loss_gap = 0.018,
          .evidence = "bench/results/2026-11-29-quality.md"};
}

// Number of layers that store each of input, attn_out, mlp, all.
std::vector<int64_t> Mix(const Offer& offer) {
  std::vector<int64_t> counts(4);
  for (const LayerStorage& storage : offer.storage) ++counts[static_cast<int>(storage.stored)];
  return counts;
}

TEST(Offers, TheFastestKeepsAllAndTheSmallestTheInputs) {
  OfferRequest request = Request();
  const Offers fastest = MakeOffers(request);
  EXPECT_THAT(Mix(fastest.front[*fastest.preferred]), ElementsAre(0, 0, 0, 8));
  EXPECT_EQ(fastest.preferred, fastest.front.size() - 1);
  request.preference = Preference::kSmallest;
  const Offers smallest = MakeOffers(request);
  EXPECT_EQ(smallest.preferred, 0);
  EXPECT_THAT(Mix(smallest.front[0]), ElementsAre(8, 0, 0, 0));
}

// Under a bound the policies are mixed so that one layer more of the dearer one would not fit.
TEST(Offers, PoliciesAreSolvedForTheBound) {
  OfferRequest request = Request();
  const Offers free = MakeOffers(request);
  request.bounds.memory_bytes_max =
      (free.front.front().memory.high.total + free.front.back().memory.high.total) / 2;
  const Offers bound = MakeOffers(request);
  const Offer& best = bound.front[*bound.preferred];
  EXPECT_LE(best.memory.high.total, request.bounds.memory_bytes_max);
  // Of another order than even points of the path: several policies at once.
  const std::vector<int64_t> mix = Mix(best);
  EXPECT_GT(std::count_if(mix.begin(), mix.end(), [](int64_t n) { return n > 0; }), 1);
  const LayerMemory layer{
      .stored = Stored::kAll, .stream = 4096, .attention = 4096, .mlp = 4096, .longest = 4096};
  const int64_t one_layer = SavedBytes(request.shape, layer, 4, false);
  EXPECT_GT(best.memory.high.total, request.bounds.memory_bytes_max - one_layer);
}

TEST(Offers, KeptRowsMakeAnOfferSmallerAndFasterThanAnyDenseOne) {
  OfferRequest request = Request();
  request.tokens = {Half()};
  const Offers offers = MakeOffers(request);
  const Offer& smallest = offers.front.front();
  EXPECT_EQ(smallest.token_choice, 0);
  EXPECT_DOUBLE_EQ(smallest.kept_share, 0.5);
  // All rows of the data count, computed or not.
  EXPECT_NEAR(smallest.tokens_per_second * smallest.step.Total(), 4 * 4096, 1e-6);
  request.preference = Preference::kMostExact;
  const Offers exact = MakeOffers(request);
  EXPECT_EQ(exact.front[*exact.preferred].token_choice, -1);
  EXPECT_DOUBLE_EQ(exact.front[*exact.preferred].kept_share, 1);
}

// lemo-spec section 19: the opponent is the short window.
TEST(Offers, AShortWindowStandsBesideTheSparseRun) {
  OfferRequest request = Request();
  request.tokens = {Half()};
  request.short_windows = {2048};
  const Offers offers = MakeOffers(request);
  std::vector<int64_t> windows;
  for (const Offer& offer : offers.front) {
    if (offer.token_choice >= 0) continue;
    windows.push_back(offer.window);
    EXPECT_DOUBLE_EQ(offer.kept_share, offer.window == 2048 ? 0.5 : 1.0);
  }
  EXPECT_THAT(windows, Contains(2048));
  EXPECT_THAT(windows, Contains(4096));
}

// What either loses is not known, so neither takes the other off the front, whatever choosing
// costs.
TEST(Offers, TheRunThatWasAskedForIsShownBesideTheShortWindow) {
  OfferRequest request = Request();
  request.tokens = {Half()};
  request.tokens[0].chooser = {
      .by = RowChooser::By::kPredictor, .held_bytes = 1 << 28, .first_width = 4096};
  request.short_windows = {2048};
  const Offers offers = MakeOffers(request);
  const auto is_sparse = [](const Offer& offer) { return offer.token_choice >= 0; };
  const auto is_short = [](const Offer& offer) { return offer.window == 2048; };
  EXPECT_TRUE(std::any_of(offers.front.begin(), offers.front.end(), is_sparse));
  EXPECT_TRUE(std::any_of(offers.front.begin(), offers.front.end(), is_short));
}

TEST(Offers, RanksCostDevicesAndABoundOfDevicesTakesThemAway) {
  OfferRequest request = Request();
  request.world_sizes = {1, 2, 4};
  const Offers offers = MakeOffers(request);
  const Offer& fastest = offers.front[*offers.preferred];
  EXPECT_EQ(fastest.ranks(), 4);
  request.bounds.device_seconds_max = fastest.device_seconds * 0.99;
  request.preference = Preference::kMostExact;
  for (const Offer& offer : MakeOffers(request).front) {
    EXPECT_LE(offer.device_seconds, request.bounds.device_seconds_max);
  }
}

TEST(Offers, ARankThatNobodyCanShareIsNoCandidate) {
  OfferRequest request = Request();
  request.world_sizes = {3};  // three ranks are data parallel, as 16 heads are no multiple
  for (const Offer& offer : MakeOffers(request).front) {
    EXPECT_EQ(offer.tensor_ranks, 1);
    EXPECT_EQ(offer.data_ranks, 3);
  }
  request.batch_sequences = 2;
  EXPECT_THAT(FaultsOf(request), Contains(HasSubstr("world_sizes")));
}

TEST(Offers, AnImpossibleWishNamesWhatWouldDo) {
  OfferRequest request = Request();
  const Offers free = MakeOffers(request);
  request.bounds.memory_bytes_max = free.front.front().memory.high.total - 1;
  const Offers one = MakeOffers(request);
  EXPECT_THAT(one.front, IsEmpty());
  ASSERT_EQ(one.advice.size(), 1);
  EXPECT_EQ(one.advice[0].bound, "memory_bytes_max");
  EXPECT_EQ(one.advice[0].needed, free.front.front().memory.high.total);
  EXPECT_EQ(one.nearest.front().id, free.front.front().id);

  // Two bounds that each alone cannot be met: neither is enough by itself.
  request.bounds.finish_seconds_max = free.front.back().finish_seconds / 2;
  const Offers two = MakeOffers(request);
  ASSERT_EQ(two.advice.size(), 2);
  EXPECT_FALSE(two.advice[0].needed.has_value());
  EXPECT_FALSE(two.advice[1].needed.has_value());
  EXPECT_EQ(two.nearest.size(), 3);
}

TEST(Offers, IdsAreOfTheContent) {
  OfferRequest request = Request();
  const Offers offers = MakeOffers(request);
  const std::string id = offers.front[0].id;
  // Bounds and preference choose among offers; they are not in them.
  request.preference = Preference::kSmallest;
  EXPECT_EQ(MakeOffers(request).front[0].id, id);
  // Longer rows change what the same decisions mean.
  request.data.documents.push_back({128, 1});
  EXPECT_NE(MakeOffers(request).front[0].id, id);
  // Another place in the list of choices does not.
  OfferRequest first = Request(), second = Request();
  TokenChoice other = Half();
  other.keep.assign(8, 0.25);
  first.tokens = {Half(), other};
  second.tokens = {other, Half()};
  std::vector<std::string> a, b;
  for (const Offer& offer : MakeOffers(first).front) a.push_back(offer.id);
  for (const Offer& offer : MakeOffers(second).front) b.push_back(offer.id);
  EXPECT_EQ(a, b);
}

// Evaluations, shadows, a table of blocks and the pass that is rehearsed are part of a run's time,
// and of its price.
TEST(Offers, ARunIsItsStepsAndWhatIsBesideThem) {
  OfferRequest request = Request();
  request.preference = Preference::kSmallest;
  const auto smallest = [&request] {
    const Offers offers = MakeOffers(request);
    const Offer& offer = offers.front[*offers.preferred];
    EXPECT_NEAR(offer.finish_seconds,
                100 * offer.step.Total() + offer.evaluation_seconds + offer.shadow_seconds +
                    offer.rehearsal_seconds + offer.scoring_seconds,
                1e-9 * offer.finish_seconds);
    EXPECT_DOUBLE_EQ(offer.device_seconds, offer.finish_seconds);
    return offer;
  };
  const Offer alone = smallest();
  EXPECT_EQ(alone.evaluation_seconds, 0);
  EXPECT_EQ(alone.scoring_seconds, 0);
  // A step has four sequences, which pass one by one.
  EXPECT_DOUBLE_EQ(alone.rehearsal_seconds, alone.step.Total() / 4);

  request.evaluated = {.rows = 8192, .longest = 4096, .pairs = 2 * CausalPairs(4096), .times = 5};
  const Offer evaluated = smallest();
  Work pass;
  const LayerRows rows{.attention = 8192, .mlp = 8192, .pairs = 2 * CausalPairs(4096)};
  for (int l = 0; l < 8; ++l) {
    pass += LayerWork(request.shape, {.attention_rank = 8}, Stored::kAll, rows).forward;
  }
  pass.products += 2.0 * 8192 * 1024 * 32000;
  EXPECT_NEAR(evaluated.evaluation_seconds, 5 * Seconds(pass, request.device.compute),
              1e-9 * evaluated.evaluation_seconds);
  EXPECT_NE(evaluated.id, alone.id);
  const double fastest = MakeOffers(request).front.back().finish_seconds;
  request.evaluated.times = 10;
  EXPECT_NEAR(smallest().evaluation_seconds, 2 * evaluated.evaluation_seconds, 1e-9);
  // A run that evaluates more often than it has time for is no offer.
  request.bounds.finish_seconds_max = 1.0001 * fastest;
  EXPECT_THAT(MakeOffers(request).front, IsEmpty());
  request.bounds = {};
  request.evaluated.times = 5;

  // What looks at dropped rows costs nothing in a run that drops none.
  request.evaluated.sparse = true;
  request.evaluated.shadows = 10;
  request.evaluated.shadow_rows = 4096;
  request.tokens = {Half()};
  const Offer half = smallest();
  ASSERT_EQ(half.token_choice, 0);
  EXPECT_NEAR(half.evaluation_seconds, 1.5 * evaluated.evaluation_seconds, 1e-9);
  EXPECT_NEAR(half.shadow_seconds, 1.5 * evaluated.evaluation_seconds, 1e-9);
  EXPECT_EQ(half.scoring_seconds, 0);
  const Offers all = MakeOffers(request);
  const auto dense = std::find_if(all.front.begin(), all.front.end(),
                                  [](const Offer& offer) { return offer.token_choice < 0; });
  ASSERT_NE(dense, all.front.end());
  EXPECT_EQ(dense->shadow_seconds, 0);
  EXPECT_EQ(dense->evaluation_seconds, evaluated.evaluation_seconds);

  // A table is of all the data that the steps see, 100 documents of it.
  request.tokens.front().table = ScoredRows{.by = ScoredRows::By::kLoss};
  EXPECT_NEAR(smallest().scoring_seconds, 50 * evaluated.evaluation_seconds / 5, 1e-6);
}

TEST(Offers, LongFrontsAreThinnedButNotOfTheirEndsNorOfThePreferred) {
  OfferRequest request = Request();
  request.tokens = {Half()};
  request.preference = Preference::kMostExact;
  const Offers all = MakeOffers(request);
  request.offers_max = 3;
  const Offers few = MakeOffers(request);
  ASSERT_GT(all.front.size(), 4);
  EXPECT_LE(few.front.size(), 4);
  EXPECT_EQ(few.front.front().id, all.front.front().id);
  EXPECT_EQ(few.front.back().id, all.front.back().id);
  EXPECT_EQ(few.front[*few.preferred].id, all.front[*all.preferred].id);
}

TEST(Offers, FaultsAreNamedAllAtOnce) {
  OfferRequest request = Request();
  EXPECT_THAT(FaultsOf(request), IsEmpty());
  request.steps = 0;
  request.data.documents.clear();
  request.tokens = {{.scope = Scope::kNested, .keep = {0.5, 1, 1, 1, 1, 1, 1, 1}}};
  EXPECT_THAT(FaultsOf(request),
              ElementsAre(HasSubstr("data.documents"), HasSubstr("steps"), HasSubstr("rise")));
}

TEST(Workload, IsOfTheHistogramNotOfItsMaximum) {
  OfferRequest request = Request();
  request.data.documents = {{4096, 1}, {256, 15}};
  const Workload work = WorkloadOf(request, 4096, nullptr);
  EXPECT_EQ(work.rows, 4096 + 15 * 256);
  EXPECT_EQ(work.sequences, 16);
  EXPECT_DOUBLE_EQ(work.layers[0].pairs, CausalPairs(4096) + 15 * CausalPairs(256));
  EXPECT_EQ(MostRows(request, work, 1), 4096);
  // Short sequences fill a micro-batch up to its rows, as long as the step has any: four.
  EXPECT_EQ(MostRows(request, work, 2), 4096 + 3 * 256);
  request.data.packing = true;
  EXPECT_EQ(WorkloadOf(request, 4096, nullptr).sequences, 2);
}

// Documents of fewer than four blocks are kept whole; a packed sequence may be made of them alone.
TEST(Workload, ShortDocumentsBoundWhatASequenceKeeps) {
  OfferRequest request = Request();
  request.data = {.documents = {{4096, 1}, {128, 64}}, .packing = true};
  const TokenChoice half = Half();
  const Workload work = WorkloadOf(request, 4096, &half);
  EXPECT_DOUBLE_EQ(work.kept_share, (2048.0 + 64 * 128) / (4096 + 64 * 128));
  EXPECT_EQ(LargestLayers(request, work, &half, 4096)[0].attention, 4096);
  request.data.documents = {{4096, 1}};
  EXPECT_EQ(LargestLayers(request, WorkloadOf(request, 4096, &half), &half, 4096)[0].attention,
            2048);
}

// Rows that ask see all before them, and the others' keys and values are kept.
TEST(Workload, RowsThatAreOnlySeen) {
  OfferRequest request = Request();
  request.data = {.documents = {{4096, 2}}, .packing = true};
  TokenChoice half = Half(Scope::kLayer);
  const Workload apart = WorkloadOf(request, 4096, &half);
  EXPECT_EQ(apart.layers[0].seen, 0);
  half.kv_all = true;
  const Workload work = WorkloadOf(request, 4096, &half);
  EXPECT_EQ(work.layers[0].attention, apart.layers[0].attention);
  EXPECT_EQ(work.layers[0].seen, 2 * 2048);
  EXPECT_DOUBLE_EQ(work.layers[0].pairs, CausalPairs(4096));  // half of those of both
  const LayerMemory layer = LargestLayers(request, work, &half, 4096)[0];
  EXPECT_EQ(layer.attention, 2048);
  EXPECT_EQ(layer.seen, 2048);
  EXPECT_EQ(layer.keys, 4096);
}

// All rows may pass a threshold, or a tenth: of 64 blocks seven.
TEST(Workload, RowsThatPassAThresholdMayBeAll) {
  OfferRequest request = Request();
  request.data = {.documents = {{4096, 2}}, .packing = true};
  TokenChoice half = Half(Scope::kLayer);
  half.any_share = half.kv_all = true;
  const Workload work = WorkloadOf(request, 4096, &half);
  EXPECT_DOUBLE_EQ(work.kept_share, 0.5);
  const LayerMemory layer = LargestLayers(request, work, &half, 4096)[0];
  EXPECT_TRUE(layer.listed);
  EXPECT_EQ(layer.attention, 4096);
  EXPECT_EQ(layer.longest, 4096);
  EXPECT_EQ(layer.seen, 4096 - 7 * 64);
}

TEST(Workload, StepsOfAllRowsAreInTheMeanStepAndBoundTheLargest) {
  OfferRequest request = Request();
  TokenChoice half = Half();
  const Workload sparse = WorkloadOf(request, 4096, &half);
  const Workload dense = WorkloadOf(request, 4096, nullptr);
  half.dense_share = 0.25;
  const Workload mixed = WorkloadOf(request, 4096, &half);
  EXPECT_NEAR(mixed.layers[0].pairs, 0.75 * sparse.layers[0].pairs + 0.25 * dense.layers[0].pairs,
              1e-6 * dense.layers[0].pairs);
  EXPECT_EQ(mixed.most_kept, dense.most_kept);
  EXPECT_NEAR(mixed.kept_share, 0.75 * sparse.kept_share + 0.25, 1e-9);
}

TEST(Workload, CountsTheRowsThatChoicesLookAt) {
  const OfferRequest request = Request();
  constexpr double kRows = 4096.0 * 100;
  TokenChoice choice = Half();
  EXPECT_EQ(WorkloadOf(request, 4096, &choice).scored_rows, kRows);
  choice.scope = Scope::kLayer;
  EXPECT_EQ(WorkloadOf(request, 4096, &choice).scored_rows, 8 * kRows);
  // Where rows leave for good, the second choice is among those that stayed.
  choice.scope = Scope::kNested;
  choice.keep = {1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25};
  EXPECT_EQ(WorkloadOf(request, 4096, &choice).scored_rows, 1.5 * kRows);
}

TEST(StepTime, ChoosingRowsByANetworkTakesItsProducts) {
  const OfferRequest request = Request();
  TokenChoice choice = Half();
  const Workload work = WorkloadOf(request, 4096, &choice);
  const std::vector<LayerStorage> storage(8);
  EXPECT_EQ(StepClock(request, work, {}, &choice).Step(storage, 4).selection, 0);
  choice.chooser = {.by = RowChooser::By::kPredictor, .first_width = 256};
  const StepSeconds step = StepClock(request, work, {}, &choice).Step(storage, 4);
  EXPECT_NEAR(step.selection, 2.0 * 4 * 4096 * 1024 * 256 / 1e11, 1e-9);
  EXPECT_NEAR(step.Foretold() - step.selection,
              StepClock(request, work, {}).Step(storage, 4).Foretold(), 1e-9);
}

TEST(StepTime, ALessonIsAPassOverOneMicroBatch) {
  OfferRequest request = Request();
  request.device.compute = {1e11, 1e30};  // attention takes nothing
  TokenChoice choice = Half();
  choice.chooser = {.by = RowChooser::By::kPredictor, .first_width = 256};
  const Workload work = WorkloadOf(request, 4096, &choice);
  const std::vector<LayerStorage> storage(8);
  const auto selection = [&](int64_t micro_batches) {
    return StepClock(request, work, {}, &choice).Step(storage, micro_batches).selection;
  };
  const double ranking = selection(4);
  choice.lessons = {.parameters = 1000, .layers = 8};
  EXPECT_EQ(selection(4), ranking);  // of none
  choice.lessons_a_step = 0.5;
  const double lesson = (selection(4) - ranking) / 0.5;
  EXPECT_NEAR(selection(1) - ranking, 4 * 0.5 * lesson, 1e-6 * lesson);
  // Layers but the last in their forward pass.
  const LayerRows rows{.attention = 4096, .mlp = 4096, .pairs = CausalPairs(4096)};
  const double forward = Seconds(
      LayerWork(request.shape, {.attention_rank = 8}, Stored::kAll, rows).forward, {1e11, 1e30});
  EXPECT_GT(lesson, 7 * forward);
  EXPECT_LT(lesson, 8.5 * forward);
}

// Where nothing is guessed of the last layer's MLP, its queries and keys are the end of the pass.
TEST(StepTime, APredictorsTrainingPassesTheLastLayerForItsMlpAlone) {
  OfferRequest request = Request();
  request.tuning = {};
  request.device.compute = {1e11, 1e30};  // attention takes nothing
  const auto forward = [&request](bool mlp) {
    request.learning = Learning{.heads = {.mlp = mlp}};
    const Workload work = WorkloadOf(request, 4096, nullptr);
    return StepClock(request, work, {}).Step(std::vector<LayerStorage>(8), 4).forward;
  };
  const ModelShape& shape = request.shape;
  const double rows = 4 * 4096;
  const double whole = Seconds(
      LayerWork(shape, {}, Stored::kAll, {.attention = 16384, .mlp = 16384}).forward, {1e11, 1e30});
  const auto width = static_cast<double>((shape.heads + shape.kv_heads) * shape.head_dim);
  const double scored = 2 * rows * static_cast<double>(shape.hidden) * width / 1e11;
  EXPECT_NEAR(forward(true), 8 * whole, 1e-6 * whole);
  EXPECT_NEAR(forward(false), 7 * whole + scored, 1e-6 * whole);
}

TEST(Offers, APredictorLearnsInOneRank) {
  OfferRequest request = Request();
  request.tokens = {Half()};
  request.tokens[0].chooser = {.by = RowChooser::By::kPredictor, .first_width = 256};
  request.world_sizes = {1, 2};
  const auto most_ranks = [&request] {
    int64_t most = 0;
    for (const Offer& offer : MakeOffers(request).front) {
      if (offer.token_choice == 0) most = std::max(most, offer.ranks());
    }
    return most;
  };
  EXPECT_EQ(most_ranks(), 2);
  request.tokens[0].lessons.parameters = 1000;
  EXPECT_EQ(most_ranks(), 1);
}

TEST(StepTime, AddsUpTheWorkOfTheCostModel) {
  const OfferRequest request = Request();
  const Workload work = WorkloadOf(request, 4096, nullptr);
  const StepClock clock(request, work, {});
  const StepSeconds step = clock.Step(std::vector<LayerStorage>(8, {Stored::kInput}), 4);
  const LayerRows rows{.attention = 4096, .mlp = 4096, .pairs = CausalPairs(4096)};
  Work expected;
  for (int i = 0; i < 4 * 8; ++i) {
    expected += LayerWork(request.shape, {.attention_rank = 8}, Stored::kInput, rows).Total();
  }
  for (int i = 0; i < 4; ++i) {
    expected += HeadWork(request.shape, {.attention_rank = 8}, 4096).Total();
  }
  EXPECT_NEAR(step.Total() / Seconds(expected, request.device.compute), 1, 1e-9);
  EXPECT_EQ(step.communication, 0);
}

TEST(StepTime, RanksDivideTheWorkAndPayForSums) {
  OfferRequest request = Request();
  request.device.links = {{.ranks = 2, .bytes_per_second = 1e9}};
  const Workload work = WorkloadOf(request, 4096, nullptr);
  const std::vector<LayerStorage> storage(8, {Stored::kAll});
  const StepSeconds one = StepClock(request, work, {}).Step(storage, 4);
  const StepSeconds tensor = StepClock(request, work, {.tensor_ranks = 2}).Step(storage, 4);
  EXPECT_NEAR(tensor.forward, one.forward / 2, 1e-12);
  // Two sub-blocks, both ways, 16,384 rows of 1,024 floats in each of 8 layers; a ring of two sends
  // them once.
  EXPECT_NEAR(tensor.communication, 4.0 * 8 * 16384 * 4096 / 1e9, 1e-9);
  // Of shared rows the normed ones are gathered once more on the way down.
  request.sequence = true;
  const StepSeconds rows = StepClock(request, work, {.tensor_ranks = 2}).Step(storage, 4);
  EXPECT_NEAR(rows.communication, 1.25 * tensor.communication, 1e-9);
  EXPECT_EQ(rows.forward, tensor.forward);
  // Three ranks with four sequences: one has two.
  const StepSeconds data = StepClock(request, work, {.data_ranks = 3}).Step(storage, 2);
  EXPECT_NEAR(data.forward, one.forward / 2, 1e-12);
  EXPECT_GT(data.communication, 0);
}

}  // namespace
}  // namespace lemo::planner
