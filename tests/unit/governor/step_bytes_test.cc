// What a step needs, against the forecast that it is made of and against sums by hand. Against
// runs: tests/property/governor.
#include "worker/train/governor/step_bytes.h"

#include <limits>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/small_llama.h"
#include "worker/train/governor/governor.h"
#include "worker/train/spec/spec.h"

namespace lemo::train {
namespace {

using planner::LayerStorage;
using planner::Stored;
using ::testing::ElementsAre;

lemo::v1::RunSpec SpecOf(const std::vector<std::string>& assignments) {
  Violations violations;
  lemo::v1::RunSpec spec = ParseRunSpec(
      R"({"model": {"path": "m"}, "data": {"train": [{"path": "a"}], "max_length": 1024},
          "tuner": {"lora": {"rank": 8}}, "memory": {"budget_bytes": 1}, "output": {"dir": "o"}})",
      "spec", &violations);
  ApplyOverrides(assignments, &spec, &violations);
  EXPECT_TRUE(violations.empty()) << violations.ToStatus();
  FillDefaults(&spec);
  return spec;
}

StepModel ModelOf(const std::vector<std::string>& assignments = {}) {
  return *StepModelOf(SpecOf(assignments), SmallLlama(), {.element_bytes = 4, .threads = 2});
}

std::vector<LayerStorage> Uniform(Stored stored) {
  return std::vector<LayerStorage>(4, {stored, false});
}

// Documents of these rows, every one of them labelled but the last of each.
MicroBatch MicroOf(const std::vector<int>& lengths) {
  MicroBatch batch;
  batch.document_starts.push_back(0);
  for (const int length : lengths) {
    for (int i = 0; i < length; ++i) {
      batch.tokens.push_back(1);
      batch.positions.push_back(i);
      batch.labels.push_back(i + 1 < length ? 1 : kIgnoreLabel);
    }
    batch.document_starts.push_back(static_cast<int32_t>(batch.tokens.size()));
    batch.document_rows.push_back(0);
    batch.document_places.push_back(batch.document_starts.rbegin()[1]);
  }
  return batch;
}

StepNeed NeedOfDocument(const StepModel& model, int32_t rows, Stored stored) {
  const std::vector<int32_t> starts = {0, rows};
  std::vector<uint8_t> labelled(rows, 1);
  labelled.back() = 0;
  return NeedOf(model, starts, labelled, model.tokens.keep, Uniform(stored));
}

TEST(StepBytes, AreThoseOfThePlan) {
  const StepModel model = ModelOf();
  planner::MemoryOptions options = model.memory;
  options.layers.assign(
      4, {.stored = Stored::kMlp, .stream = 700, .attention = 700, .mlp = 700, .longest = 700});
  options.batch_rows = options.stream_rows = options.rows_max = 700;
  options.labelled = 699;
  const planner::MemoryForecast forecast = planner::ForecastMemory(options);
  const StepNeed need = NeedOfDocument(model, 700, Stored::kMlp);
  EXPECT_EQ(need.buffers, forecast.high.saved_activations);
  EXPECT_EQ(need.total() + forecast.high.weights + forecast.high.trainable, forecast.high.total);
  EXPECT_EQ(WeightBytes(model), forecast.high.weights);
  EXPECT_EQ(TrainableBytes(model), forecast.high.trainable);
  // Masters and two moments, fp32.
  const int64_t whole = 12 * planner::CountTrainable(options.shape, options.tuning);
  EXPECT_EQ(SnapshotBytes(model, 1), whole);
  EXPECT_GT(SnapshotBytes(model, 4), whole / 4);
  EXPECT_LT(SnapshotBytes(model, 4), whole / 2);
}

TEST(StepBytes, FollowTheDocumentsOfTheBatch) {
  const StepModel model = ModelOf();
  EXPECT_LT(NeedOfDocument(model, 300, Stored::kAttentionOut).total(),
            NeedOfDocument(model, 301, Stored::kAttentionOut).total());
  // Attention's temporaries follow the longest document, not the rows.
  const std::vector<int32_t> two = {0, 2000, 4000};
  const std::vector<uint8_t> labelled(4000, 1);
  EXPECT_LT(NeedOf(model, two, labelled, model.tokens.keep, Uniform(Stored::kInput)).passing,
            NeedOfDocument(model, 4000, Stored::kInput).passing);
}

TEST(StepBytes, FewerRowsTakeLess) {
  for (const char* scope : {"stack", "nested", "layer"}) {
    const StepModel model = ModelOf({"tokens.policy=random", absl::StrCat("tokens.scope=", scope),
                                     "tokens.keep=[1]", "tokens.layers=all"});
    const std::vector<int32_t> starts = {0, 1024};
    const std::vector<uint8_t> labelled(1024, 1);
    int64_t before = std::numeric_limits<int64_t>::max();
    for (const double most : {1.0, 0.75, 0.5, 0.25}) {
      const std::vector<double> keep = model.tokens.Capped(model.tokens.keep, most);
      const int64_t need =
          NeedOf(model, starts, labelled, keep, Uniform(Stored::kAttentionOut)).buffers;
      EXPECT_LT(need, before) << scope << " " << most;
      before = need;
    }
  }
}

TEST(StepBytes, HaveWhatRowsAreChosenBy) {
  const std::vector<std::string> half = {"tokens.policy=random", "tokens.keep=[0.5]"};
  std::vector<std::string> by_predictor = half;
  by_predictor.push_back("tokens.policy=predictor");
  const StepModel chance = ModelOf(half);
  const auto with = [&](const PredictorFacts& facts) {
    return *StepModelOf(SpecOf(by_predictor), SmallLlama(), {.element_bytes = 4, .threads = 2},
                        facts);
  };
  // Its networks are held as weights are.
  const StepModel narrow = with({.held_bytes = 12345, .first_width = 8});
  EXPECT_EQ(WeightBytes(narrow), WeightBytes(chance) + 12345);
  // What passes grows with the width once choosing is more than any layer takes.
  const StepModel wide = with({.held_bytes = 12345, .first_width = 100000});
  constexpr int32_t kRows = 1024;
  const int64_t choosing = kRows * (4 * 100000 + 4 * SmallLlama().hidden + 4 * 4);
  const int64_t passing = NeedOfDocument(wide, kRows, Stored::kInput).passing;
  EXPECT_GT(passing, choosing);
  EXPECT_LT(passing, choosing + (1 << 18));
  EXPECT_EQ(NeedOfDocument(narrow, kRows, Stored::kInput).passing,
            NeedOfDocument(chance, kRows, Stored::kInput).passing);
}

TEST(StepBytes, ATableIsMadeByAPassOfAllRows) {
  const StepModel chance = ModelOf({"tokens.policy=random", "tokens.keep=[0.5]"});
  EXPECT_EQ(ScoresNeed(chance, 1024, 1024).total(), 0);
  const auto scoring = [](const char* score) {
    const StepModel model = ModelOf(
        {"tokens.policy=table", "tokens.keep=[0.5]", absl::StrCat("tokens.table_score=", score)});
    return ScoresNeed(model, 1024, 1024).total();
  };
  // The stream, a copy of it, and one of its size of queries and of attention's result each.
  EXPECT_GT(scoring("attention"), 4 * 1024 * SmallLlama().hidden * 4);
  EXPECT_GE(scoring("loss"), EvaluationNeed(chance, 1024, 1024).passing);
  EXPECT_GT(scoring("entropy"), scoring("loss"));
}

TEST(StepBytes, ASharedStreamIsDivided) {
  const StepModel plain = ModelOf({"parallel.tensor=2"});
  const StepModel shared = ModelOf({"parallel.tensor=2", "parallel.sequence=true"});
  // Nothing but rows of the stream is kept.
  const int64_t buffers = NeedOfDocument(plain, 1024, Stored::kInput).buffers;
  EXPECT_EQ(NeedOfDocument(shared, 1024, Stored::kInput).buffers, buffers / 2);
  EXPECT_LT(NeedOfDocument(shared, 1024, Stored::kAttentionOut).buffers,
            NeedOfDocument(plain, 1024, Stored::kAttentionOut).buffers);
  EXPECT_LT(EvaluationNeed(shared, 1024, 1024).buffers, EvaluationNeed(plain, 1024, 1024).buffers);
}

TEST(StepBytes, APassThatKeepsNothingNeedsLessThanAStep) {
  const StepModel model = ModelOf();
  EXPECT_LT(EvaluationNeed(model, 1024, 1024).total(),
            NeedOfDocument(model, 1024, Stored::kInput).total());
  EXPECT_LT(EvaluationNeed(model, 512, 512).total(), EvaluationNeed(model, 1024, 1024).total());
  EXPECT_LT(PublishNeed(model, 8, 8, false).total(), PublishNeed(model, 256, 8, false).total());
  EXPECT_LT(PublishNeed(model, 8, 8, false).total(), PublishNeed(model, 8, 8, true).total());
}

TEST(StepBytes, WhatLearnsIsMeasuredWhenItIsPublished) {
  const std::vector<std::string> tokens = {"tokens.policy=predictor", "tokens.keep=[0.5]",
                                           "tokens.online={}"};
  const auto with = [&](int64_t parameters) {
    return *StepModelOf(SpecOf(tokens), SmallLlama(), {.element_bytes = 4, .threads = 2},
                        PredictorFacts{.first_width = 8, .parameters = parameters});
  };
  const StepModel learns = with(5000), fixed = with(0);
  EXPECT_EQ(TrainableBytes(learns), TrainableBytes(fixed) + 16 * 5000);
  EXPECT_EQ(SnapshotBytes(learns, 1), SnapshotBytes(fixed, 1) + 12 * 5000);
  EXPECT_LT(PublishNeed(learns, 8, 512, false).total(),
            PublishNeed(learns, 8, 1024, false).total());
  EXPECT_EQ(PublishNeed(fixed, 8, 512, false).total(), PublishNeed(fixed, 8, 1024, false).total());
  // Evaluating teaches nothing.
  EXPECT_EQ(EvaluationNeed(learns, 1024, 1024).total(), EvaluationNeed(fixed, 1024, 1024).total());
}

TEST(StepBatch, IsCutAsTheRungSays) {
  const StepModel model = ModelOf();
  const Ladder ladder(LadderOptionsOf(model, Uniform(Stored::kAttentionOut), 600, 1, {2, 1}));
  ASSERT_EQ(ladder.storages(), 5);
  Batch batch;
  batch.micro_batches = {MicroOf({200, 300, 100}), MicroOf({250})};
  batch.tokens = 850;
  StepBatch step(model, ladder, batch, model.tokens.keep);
  EXPECT_EQ(step.rounds(0), 2);
  EXPECT_EQ(step.Parts(0)[0].tokens, batch.micro_batches[0].tokens);
  const int64_t half = ladder.storages();  // 300 rows
  ASSERT_EQ(ladder.At(half).micro_rows, 300);
  EXPECT_EQ(step.rounds(half), 4);
  const std::vector<MicroBatch> parts = step.Parts(half);
  std::vector<int64_t> rows, places;
  for (const MicroBatch& part : parts) {
    rows.push_back(part.rows());
    places.push_back(part.document_places.front());
  }
  EXPECT_THAT(rows, ElementsAre(200, 300, 100, 250));
  EXPECT_THAT(places, ElementsAre(0, 200, 500, 0));
  // The largest pass decides; the work is the same but for what is computed again.
  EXPECT_LT(step.Need(half).total(), step.Need(0).total());
  EXPECT_DOUBLE_EQ(step.Work(half).products, step.Work(0).products);
  EXPECT_GT(step.Work(ladder.storages() - 1).attention, step.Work(0).attention);
}

TEST(StepBatch, TheLadderLeadsDown) {
  const StepModel model = ModelOf({"memory.policy=all"});
  const Ladder ladder(LadderOptionsOf(model, Uniform(Stored::kAll), 1024, 1, {2, 1}));
  EXPECT_GT(ladder.storages(), 4);
  Batch batch;
  batch.micro_batches = {MicroOf({512, 512})};
  StepBatch step(model, ladder, batch, model.tokens.keep);
  const Governor governor(ladder);
  const auto need = [&step](int64_t rung) { return step.Need(rung).total(); };
  int64_t before = -1;
  for (int64_t room = step.Need(0).total(); room > 0; room -= room / 20 + 1) {
    const int64_t rung = governor.FirstFit(0, room, need);
    EXPECT_GE(rung, before);
    before = rung;
    if (rung == ladder.size()) break;
    EXPECT_LE(step.Need(rung).total(), room);
  }
  EXPECT_EQ(before, ladder.size());
}

}  // namespace
}  // namespace lemo::train
