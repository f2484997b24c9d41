// From a run spec to the planner's request, and from its offers to a table and back to a spec.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "common/violations.h"
#include "nlohmann/json.hpp"
#include "tests/support/small_llama.h"
#include "worker/train/model/family/family.h"
#include "worker/train/plan/plan_message.h"
#include "worker/train/plan/plan_request.h"
#include "worker/train/plan/plan_table.h"
#include "worker/train/spec/spec.h"

namespace lemo::train {
namespace {

using planner::LayerStorage;
using planner::Offer;
using planner::OfferRequest;
using planner::Stored;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

lemo::v1::RunSpec SpecOf(const nlohmann::json& changes) {
  nlohmann::json json = {{"model", {{"path", "m"}}},
                         {"data", {{"train", {{{"path", "a.jsonl"}}}}, {"max_length", 1024}}},
                         {"tuner", {{"lora", {{"rank", 8}, {"targets", {"q_proj", "v_proj"}}}}}},
                         {"train", {{"steps", 10}, {"batch_sequences", 4}}},
                         {"output", {{"dir", "out"}}}};
  json.merge_patch(changes);
  Violations violations;
  lemo::v1::RunSpec spec = ParseRunSpec(json.dump(), "run.json", &violations);
  EXPECT_TRUE(violations.ToStatus().ok()) << violations.ToStatus();
  FillDefaults(&spec);
  return spec;
}

PlanFacts Facts() {
  return {.documents = {{300, 20}, {1024, 4}},
          .labelled_share = 0.5,
          .device = {.type = "cpu", .compute = {1e11, 5e10}}};
}

OfferRequest RequestOf(const nlohmann::json& changes) {
  const absl::StatusOr<OfferRequest> request =
      PlanRequestOf(SpecOf(changes), SmallLlama(), Facts());
  EXPECT_TRUE(request.ok()) << request.status();
  return request.value_or(OfferRequest());
}

TEST(PlanRequest, HasTheShapeOfTheModel) {
  const DecoderConfig opt = *ParseDecoderConfig({{"architectures", {"OPTForCausalLM"}},
                                                 {"model_type", "opt"},
                                                 {"hidden_size", 768},
                                                 {"num_hidden_layers", 12},
                                                 {"num_attention_heads", 12},
                                                 {"ffn_dim", 3072},
                                                 {"vocab_size", 50272}});
  // facebook/opt-125m.
  EXPECT_EQ(planner::CountParameters(ShapeOf(opt)), 125239296);
  // The weights that the trainer expects, and no others.
  for (const DecoderConfig& config : {SmallLlama(), opt}) {
    int64_t elements = 0;
    for (const TensorSpec& tensor : ExpectedTensors(config)) {
      int64_t count = 1;
      for (const int64_t size : tensor.shape) count *= size;
      elements += count;
    }
    EXPECT_EQ(planner::CountParameters(ShapeOf(config)), elements);
  }
}

TEST(PlanRequest, HasWhatTheSpecFixes) {
  const OfferRequest request =
      RequestOf({{"tuner", {{"lora", {{"rank_pattern", {{"v_proj", 4}}}}}}},
                 {"checkpoint", {{"every_steps", 5}}},
                 {"memory", {{"loss_segment_rows", 128}}}});
  const planner::AdapterRanks& ranks = request.tuning.adapters;
  EXPECT_THAT((std::vector<int64_t>{ranks.q, ranks.k, ranks.v, ranks.o, ranks.gate, ranks.down}),
              ElementsAre(8, 0, 4, 0, 0, 0));
  EXPECT_EQ(request.window, 1024);
  EXPECT_EQ(request.steps, 10);
  EXPECT_TRUE(request.checkpoints);
  EXPECT_EQ(request.evaluated.rows, 0);
  EXPECT_THAT(request.loss_segments, ElementsAre(128));
  EXPECT_THAT(request.micro_batch_sequences, ElementsAre(1, 2, 4));
  EXPECT_TRUE(request.tokens.empty());
  EXPECT_TRUE(request.short_windows.empty());
  EXPECT_EQ(request.preference, planner::Preference::kMostExact);
}

TEST(PlanRequest, CountsTheStepsOfEpochs) {
  // 20 * 300 + 4 * 1024 rows make 10 sequences, of which a step takes 4.
  const nlohmann::json epochs = {{"train", {{"steps", nullptr}, {"epochs", 2.0}}}};
  EXPECT_EQ(RequestOf(epochs).steps, 5);
}

TEST(PlanRequest, TakesTheChoiceOfRowsAndRefusesWhatHasNoSize) {
  const OfferRequest request =
      RequestOf({{"tokens", {{"policy", "random"}, {"scope", "stack"}, {"keep", {0.5}}}}});
  ASSERT_EQ(request.tokens.size(), 1);
  EXPECT_THAT(request.tokens[0].keep, ElementsAre(0.5, 0.5, 0.5, 0.5));
  // Beside it the window of as few rows.
  EXPECT_THAT(request.short_windows, ElementsAre(512));
  // What the study found of both is quoted, and not taken for this model's.
  for (const std::string& known : {request.tokens[0].evidence, ShortWindowEvidence(0.5)}) {
    EXPECT_THAT(known, testing::StartsWith("not measured on this model; the study of "));
  }
  EXPECT_FALSE(request.tokens[0].loss_gap);
  // A predictor that is still to be found has no size.
  const absl::StatusOr<OfferRequest> refused = PlanRequestOf(
      SpecOf({{"tokens", {{"policy", "predictor"}, {"scope", "layer"}}}}), SmallLlama(), Facts());
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("cannot plan: tokens[0].chooser"));
}

planner::TokenChoice ChoiceOf(const nlohmann::json& tokens, const PlanFacts& facts = Facts()) {
  const absl::StatusOr<OfferRequest> request =
      PlanRequestOf(SpecOf({{"tokens", tokens}}), SmallLlama(), facts);
  EXPECT_TRUE(request.ok()) << request.status();
  return request.ok() && !request->tokens.empty() ? request->tokens[0] : planner::TokenChoice();
}

TEST(PlanRequest, HasTheLessonsOfAPredictorThatLearns) {
  PlanFacts facts = Facts();
  facts.predictor = {.first_width = 48, .parameters = 5000, .file_bytes = 20000};
  const auto learns = [&](nlohmann::json tokens) {
    tokens.update({{"policy", "predictor"}, {"online", {{"layers_per_step", 2}}}});
    return ChoiceOf(tokens, facts);
  };
  // Every step teaches two of the sparse layers. A predictor without steps begins with all rows: of
  // 10 steps 2, and 5 in which the share falls.
  const planner::TokenChoice layer = learns({{"scope", "layer"}, {"layers", "all"}});
  EXPECT_EQ(layer.lessons.parameters, 5000);
  EXPECT_EQ(layer.lessons.start_bytes, 20000);
  EXPECT_EQ(layer.lessons.joint, 0);
  EXPECT_EQ(layer.lessons.layers, 1);
  EXPECT_EQ(layer.lessons_a_step, 2);
  EXPECT_DOUBLE_EQ(layer.dense_share, 0.45);
  // One head for all layers: taught where all rows are computed, and where recall is measured.
  facts.predictor->steps = 100;
  const planner::TokenChoice stack = learns({{"scope", "stack"}, {"cooldown_steps", 5}});
  EXPECT_EQ(stack.lessons.joint, 1);
  EXPECT_EQ(stack.lessons.layers, 4);
  EXPECT_DOUBLE_EQ(stack.dense_share, 0.5);
  EXPECT_DOUBLE_EQ(stack.lessons_a_step, 0.5 + 0.5 / 50);
  const planner::TokenChoice fixed = ChoiceOf({{"policy", "predictor"}, {"scope", "stack"}}, facts);
  EXPECT_EQ(fixed.lessons.parameters, 0);
  EXPECT_EQ(fixed.lessons_a_step, 0);
}

TEST(PlanRequest, HasWhatRowsAreChosenBy) {
  using By = planner::RowChooser::By;
  const planner::TokenChoice norm =
      ChoiceOf({{"policy", "norm"}, {"scope", "layer"}, {"mlp", "own"}, {"keep", {0.5}}});
  EXPECT_EQ(norm.chooser, (planner::RowChooser{.by = By::kNorm}));
  EXPECT_TRUE(norm.mlp_own);
  // Groups take the rows of layers that choose.
  const planner::TokenChoice group =
      ChoiceOf({{"policy", "random"}, {"scope", "group"}, {"keep", {0.5}}});
  EXPECT_EQ(group.scope, planner::Scope::kLayer);
  EXPECT_EQ(group.chooser, planner::RowChooser());
  EXPECT_FALSE(group.table);
  // True scores take a pass through the layers that a choice is for.
  const auto layers_of = [](const nlohmann::json& tokens) {
    const planner::TokenChoice choice = ChoiceOf(tokens);
    EXPECT_EQ(choice.chooser.by, By::kScores);
    return choice.chooser.layers;
  };
  const nlohmann::json oracle = {{"policy", "oracle"}, {"keep", {0.5}}};
  const auto with = [&oracle](nlohmann::json fields) {
    fields.update(oracle);
    return fields;
  };
  EXPECT_EQ(layers_of(with({{"scope", "stack"}})), 4);
  EXPECT_EQ(layers_of(with({{"scope", "nested"}, {"layers", "auto"}})), 3);
  EXPECT_EQ(layers_of(with({{"scope", "layer"}})), 1);
  EXPECT_EQ(layers_of(with({{"scope", "group"}, {"layers", "all"}, {"group_layers", 3}})), 3);
  const planner::TokenChoice table =
      ChoiceOf({{"policy", "table"}, {"table_score", "entropy"}, {"keep", {0.5}}});
  ASSERT_TRUE(table.table);
  EXPECT_EQ(table.table->by, planner::ScoredRows::By::kEntropy);
  EXPECT_EQ(table.chooser, planner::RowChooser());
}

TEST(PlanRequest, CountsThePredictorAndRefusesToPlanWithoutOne) {
  const nlohmann::json tokens = {{"policy", "predictor"}, {"scope", "stack"}, {"keep", {0.5}}};
  EXPECT_EQ(PlanRequestOf(SpecOf({{"tokens", tokens}}), SmallLlama(), Facts()).status().code(),
            absl::StatusCode::kInvalidArgument);
  PlanFacts facts = Facts();
  facts.predictor = {.held_bytes = 1000, .first_width = 48, .recall = 0.71};
  const planner::TokenChoice known = ChoiceOf(tokens, facts);
  EXPECT_EQ(known.chooser.first_width, 48);
  EXPECT_EQ(known.chooser.held_bytes, 1000);
  EXPECT_TRUE(known.chooser.own_stream);
  EXPECT_THAT(known.evidence, HasSubstr("71 %"));
  EXPECT_THAT(known.evidence, HasSubstr("+2.3 % reading on at 8,192"));
  facts.predictor->steps = 2400;
  EXPECT_THAT(ChoiceOf(tokens, facts).evidence, HasSubstr("+1.8 % reading on at 8,192"));
}

TEST(PlanRequest, HeldOutTextCountsByItsOwnLengths) {
  PlanFacts facts = Facts();
  facts.documents = {{100, 20}};
  const auto bytes_with = [&facts](planner::Evaluated evaluated) {
    facts.evaluated = evaluated;
    const OfferRequest request =
        *PlanRequestOf(SpecOf(nlohmann::json::object()), SmallLlama(), facts);
    const planner::Offers offers = MakeOffers(request);
    // What it takes by itself: of so small a model publishing may take more than all else.
    for (const planner::Moment& moment : offers.front.front().memory.moments) {
      if (moment.name == "evaluation") return moment.transient;
    }
    return int64_t{0};
  };
  const int64_t alike = bytes_with({100, 100});
  EXPECT_EQ(bytes_with({}), 0);
  EXPECT_GT(alike, 0);
  EXPECT_GT(bytes_with({1024, 1024}), alike);
  EXPECT_GT(bytes_with({1024, 100}), alike) << "as many as a micro-batch may have rows";
}

TEST(PlanRequest, CountsEvaluationsAndShadows) {
  PlanFacts facts = Facts();
  const auto times = [&facts](const nlohmann::json& eval, planner::Evaluated evaluated) {
    facts.evaluated = evaluated;
    const OfferRequest request = *PlanRequestOf(SpecOf({{"eval", eval}}), SmallLlama(), facts);
    return std::pair(request.evaluated.times, request.evaluated.shadows);
  };
  const planner::Evaluated held_out{.rows = 1024, .longest = 100};
  // Ten steps: before the first and behind the last.
  EXPECT_EQ(times(nlohmann::json::object(), held_out), std::pair(2L, 0L));
  EXPECT_EQ(times({{"every_steps", 3}, {"shadow_every_steps", 4}}, held_out), std::pair(5L, 2L));
  // The last one is not done twice.
  EXPECT_EQ(times({{"every_steps", 5}}, held_out), std::pair(3L, 0L));
  EXPECT_EQ(times({{"every_steps", 3}}, {}), std::pair(0L, 0L));
}

// Of its training the micro-batch alone is to be chosen.
TEST(PlanRequest, APredictorsTrainingHasOffersToo) {
  const nlohmann::json changes = {
      {"tuner", nullptr}, {"predictor", {{"nested_from", {2}}, {"mlp", false}, {"r1", 32}}}};
  const OfferRequest request = RequestOf(changes);
  ASSERT_TRUE(request.learning);
  EXPECT_EQ(request.learning->heads.joint, 2);
  EXPECT_EQ(request.learning->heads.r1, 32);
  EXPECT_FALSE(request.learning->heads.mlp);
  const planner::Offers offers = MakeOffers(request);
  ASSERT_TRUE(offers.preferred);
  EXPECT_EQ(offers.candidates, 3);  // 1, 2 and 4 sequences at a time
  PlanTimes times;
  times.rates.set_type("cpu");
  times.rates.set_compute_type("float32");
  const lemo::v1::PlanResult plan = PlanMessage(request, offers, times);
  for (const lemo::v1::Offer& offer : plan.offers()) {
    EXPECT_EQ(offer.storage_size(), 0);
    EXPECT_FALSE(offer.overrides().has_memory());
    EXPECT_FALSE(offer.overrides().has_parallel());
    EXPECT_EQ(offer.overrides().train().micro_batch_tokens(),
              offer.micro_batch_sequences() * offer.window());
    EXPECT_EQ(offer.kept(), 1);
    EXPECT_THAT(offer.quality(), HasSubstr("card"));
    // Values, gradients and two moments of five networks.
    const int64_t of_head = 2 * (32 * request.shape.hidden + int64_t{2} * 128 * 64);
    EXPECT_EQ(offer.expected().trainable(), 16 * (request.shape.layers + 2) * of_head);
    EXPECT_GT(offer.step().selection(), 0);
    EXPECT_GT(offer.step().backward(), 0);
    EXPECT_EQ(offer.step().head(), 0);
  }
  const auto refused = PlanRequestOf(SpecOf(changes), SmallLlama(), Facts(), {.world_sizes = {2}});
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("by one rank"));
}

// How many blocks pass is not known: bytes are for all, seconds for what passed when the card was
// written, else for tokens.keep.
TEST(PlanRequest, ThresholdsAreBoundedAndTimedByTheCard) {
  nlohmann::json tokens = {{"policy", "predictor"}, {"scope", "layer"},
                           {"mode", "threshold"},   {"threshold", {0.1, 0.2, 0.3, 0.4}},
                           {"layers", "all"},       {"kv_all", true},
                           {"keep", {0.5}}};
  PlanFacts facts = Facts();
  facts.predictor = {.first_width = 48, .recall = 0.71};
  const planner::TokenChoice own = ChoiceOf(tokens, facts);
  EXPECT_TRUE(own.any_share);
  EXPECT_TRUE(own.kv_all);
  EXPECT_THAT(own.keep, ElementsAre(0.5, 0.5, 0.5, 0.5));
  EXPECT_THAT(own.evidence, HasSubstr("as if tokens.keep of them did"));
  facts.predictor->allocated = {.mean = 0.5,
                                .keep = {1, 0.5, 0.25, 0.25},
                                .sequences = 12,
                                .loss_gap = 0.031,
                                .threshold = {0.1, 0.2, 0.3, 0.4}};
  const planner::TokenChoice of_card = ChoiceOf(tokens, facts);
  EXPECT_THAT(of_card.keep, ElementsAre(0.99, 0.5, 0.25, 0.25));
  EXPECT_THAT(of_card.evidence, HasSubstr("(0.50), bytes are for all blocks"));
  EXPECT_THAT(of_card.evidence, HasSubstr("+0.031 nats higher before any tuning, on 12 sequences"));

  PlanWishes wishes;
  wishes.keep = {0.25};
  EXPECT_THAT(std::string(PlanRequestOf(SpecOf({{"tokens", tokens}}), SmallLlama(), facts, wishes)
                              .status()
                              .message()),
              HasSubstr("plan.keep: the thresholds say how many"));
}

TEST(PlanRequest, QuotesWhatThePredictorsCardMeasuredOnTheModel) {
  PlanFacts facts = Facts();
  facts.predictor = {.first_width = 48, .recall = 0.71};
  facts.predictor->allocated = {.mean = 0.5,
                                .keep = {1, 0.5, 0.25, 0.25},
                                .mlp = "shared",
                                .sequences = 12,
                                .loss_gap = 0.031,
                                .rises = {{0.2, 0.6}, {{4, 2}, {0.02, 0.01}, {0, 0}, {0, 0}}}};
  nlohmann::json tokens = {{"policy", "predictor"}, {"scope", "layer"}, {"keep", {1, 0.6, 0.6, 1}}};
  const planner::TokenChoice known = ChoiceOf(tokens, facts);
  ASSERT_TRUE(known.loss_gap);
  EXPECT_DOUBLE_EQ(*known.loss_gap, 0.01);
  EXPECT_THAT(known.evidence, HasSubstr("the loss of this model is +0.010 nats"));
  EXPECT_THAT(known.evidence, HasSubstr("all at once at a mean of 0.50: +0.031), on 12 sequences"));
  // Nothing is made up for what was not measured: other rows of the MLP, another scope, fewer rows.
  for (const auto& [name, value] : {std::pair<const char*, nlohmann::json>{"mlp", "off"},
                                    {"scope", "group"},
                                    {"keep", {1, 0.6, 0.6, 0.1}}}) {
    nlohmann::json other = tokens;
    other[name] = value;
    const planner::TokenChoice unknown = ChoiceOf(other, facts);
    EXPECT_FALSE(unknown.loss_gap) << name;
    EXPECT_THAT(unknown.evidence, HasSubstr("does to the loss was not measured")) << name;
  }
}

TEST(PlanRequest, ChoosesAmongTheSharesThatAreWished) {
  PlanWishes wishes;
  wishes.keep = {0.5, 0.25, 0.25};
  const auto request = [&](const nlohmann::json& tokens, const PlanFacts& facts) {
    const absl::StatusOr<OfferRequest> made =
        PlanRequestOf(SpecOf({{"tokens", tokens}}), SmallLlama(), facts, wishes);
    EXPECT_TRUE(made.ok()) << made.status();
    return made.value_or(OfferRequest());
  };
  // The spec's own comes first; nothing is offered twice.
  OfferRequest made = request({{"policy", "random"}, {"keep", {0.5}}}, Facts());
  ASSERT_EQ(made.tokens.size(), 2);
  EXPECT_TRUE(made.tokens[0].spec_keep.empty());
  EXPECT_THAT(made.tokens[1].keep, ElementsAre(0.25, 0.25, 0.25, 0.25));
  EXPECT_THAT(made.tokens[1].spec_keep, ElementsAre(0.25));
  EXPECT_THAT(made.short_windows, ElementsAre(512, 256));
  // Layers that compute all rows go on doing so.
  made = request({{"policy", "random"}, {"scope", "nested"}, {"keep", {1, 1, 0.75, 0.5}}}, Facts());
  ASSERT_EQ(made.tokens.size(), 3);
  EXPECT_THAT(made.tokens[2].keep, ElementsAre(1, 1, 0.25, 0.25));
  EXPECT_THAT(made.tokens[2].spec_keep, ElementsAre(1, 1, 0.25, 0.25));
  // Shares of a card are dealt out anew, and the spec names their mean.
  PlanFacts facts = Facts();
  facts.allocated = true;
  facts.predictor = {.first_width = 48};
  facts.predictor->allocated = {
      .keep = {0.5, 0.5, 0.5, 0.5}, .mlp = "shared", .rises = {{0.1}, {{1}, {1}, {0}, {0}}}};
  made =
      request({{"policy", "predictor"}, {"scope", "layer"}, {"keep", {0.75, 1, 0.75, 0.5}}}, facts);
  ASSERT_EQ(made.tokens.size(), 3);
  EXPECT_NEAR(made.tokens[1].keep[0] + made.tokens[1].keep[1], 1.8, 1e-9);
  EXPECT_NEAR(made.tokens[1].keep[2] + made.tokens[1].keep[3], 0.2, 1e-9);
  EXPECT_THAT(made.tokens[1].spec_keep, ElementsAre(0.5));

  EXPECT_THAT(
      std::string(PlanRequestOf(SpecOf(nlohmann::json::object()), SmallLlama(), Facts(), wishes)
                      .status()
                      .message()),
      HasSubstr("plan.keep: the run leaves no rows out"));
}

TEST(PlanRequest, StepsOfAllRowsAreAShareOfTheRun) {
  const nlohmann::json half = {{"policy", "random"}, {"keep", {0.5}}};
  EXPECT_EQ(ChoiceOf(half).dense_share, 0);
  nlohmann::json tokens = half;
  tokens["warmup_steps"] = 1;
  tokens["anneal_steps"] = 4;
  EXPECT_EQ(ChoiceOf(tokens).dense_share, 0.3);  // of 10 steps
  tokens["cooldown_steps"] = 20;
  EXPECT_EQ(ChoiceOf(tokens).dense_share, 1);
}

TEST(PlanRequest, AWindowIsNotShorterThanADocumentThatCannotBeSplit) {
  PlanFacts facts = Facts();
  facts.splits = false;
  const lemo::v1::RunSpec spec =
      SpecOf({{"tokens", {{"policy", "random"}, {"scope", "stack"}, {"keep", {0.5}}}}});
  EXPECT_THAT(PlanRequestOf(spec, SmallLlama(), facts)->short_windows, testing::IsEmpty());
  facts.documents = {{300, 20}};
  EXPECT_THAT(PlanRequestOf(spec, SmallLlama(), facts)->short_windows, ElementsAre(512));
  facts.evaluated = {600, 600};
  EXPECT_THAT(PlanRequestOf(spec, SmallLlama(), facts)->short_windows, testing::IsEmpty());
}

TEST(PlanRequest, TakesWishes) {
  lemo::v1::PlanSpec plan;
  plan.set_prefer("smallest");
  plan.set_max_memory_bytes(1 << 30);
  plan.set_max_run_seconds(60);
  plan.set_min_keep(0.5);
  plan.set_max_device_hours(0.5);
  plan.add_ranks(1);
  plan.add_ranks(2);
  Violations violations;
  const PlanWishes wishes = WishesOf(plan, "plan", &violations);
  ASSERT_TRUE(violations.empty()) << violations.ToStatus();
  const absl::StatusOr<OfferRequest> request =
      PlanRequestOf(SpecOf(nlohmann::json::object()), SmallLlama(), Facts(), wishes);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->preference, planner::Preference::kSmallest);
  EXPECT_EQ(request->bounds.memory_bytes_max, 1 << 30);
  EXPECT_EQ(request->bounds.finish_seconds_max, 60);
  EXPECT_EQ(request->bounds.keep_min, 0.5);
  EXPECT_EQ(request->bounds.device_seconds_max, 1800);
  EXPECT_THAT(request->world_sizes, ElementsAre(1, 2));
}

TEST(PlanRequest, EveryFaultOfAWishIsNamed) {
  lemo::v1::PlanSpec plan;
  plan.set_prefer("best");
  plan.set_finish_by("2026-01-31T17:05:09Z");
  plan.set_max_memory_bytes(0);
  plan.set_max_run_seconds(-1);
  plan.set_min_keep(1.5);
  plan.set_max_device_hours(0);
  plan.add_ranks(0);
  plan.add_keep(0.5);
  plan.add_keep(1);
  Violations violations;
  WishesOf(plan, "plan", &violations);
  std::vector<std::string> fields;
  for (const Violation& violation : violations.kept()) fields.push_back(violation.field);
  EXPECT_THAT(fields, testing::UnorderedElementsAre("plan.prefer", "plan.finish_by",
                                                    "plan.max_memory_bytes", "plan.max_run_seconds",
                                                    "plan.min_keep", "plan.max_device_hours",
                                                    "plan.ranks", "plan.keep[1]"));
}

// The message says what the table says, and its overrides are those of the table.
TEST(PlanMessage, IsTheOffers) {
  const nlohmann::json sparse = {
      {"tokens", {{"policy", "random"}, {"scope", "stack"}, {"keep", {0.5}}}}};
  PlanWishes wishes;
  wishes.keep = {0.25};
  const OfferRequest request = *PlanRequestOf(SpecOf(sparse), SmallLlama(), Facts(), wishes);
  const planner::Offers offers = MakeOffers(request);
  PlanTimes times;
  times.rates.set_type("cpu");
  times.rates.set_compute_type("float32");
  times.kind = ForecastKind(request, "llama", times.rates);
  const lemo::v1::PlanResult result = PlanMessage(request, offers, times);
  ASSERT_EQ(result.offers_size(), static_cast<int>(offers.front.size()));
  EXPECT_EQ(result.preferred(), offers.front[*offers.preferred].id);
  bool dense = false, left_out = false, less = false;
  for (int i = 0; i < result.offers_size(); ++i) {
    const lemo::v1::Offer& message = result.offers(i);
    const Offer& offer = offers.front[static_cast<size_t>(i)];
    EXPECT_EQ(message.id(), offer.id);
    EXPECT_EQ(message.high().total(), offer.memory.high.total);
    EXPECT_EQ(message.high().base(), offer.memory.high.base);
    EXPECT_EQ(message.expected().saved_activations(), offer.memory.expected.saved_activations);
    EXPECT_DOUBLE_EQ(message.step().total(), offer.step.Total());
    EXPECT_EQ(message.forecast().predicted_step_seconds(), offer.step.Foretold());
    EXPECT_EQ(message.forecast().predicted_peak_bytes(), offer.memory.expected.total);
    EXPECT_EQ(message.forecast().shape_class(), "width 256, window 1024, adapters");
    EXPECT_EQ(message.run_seconds(), offer.finish_seconds);
    EXPECT_EQ(message.device(), "cpu");
    int32_t layers = 0;
    for (const lemo::v1::LayerPolicy& run : message.storage()) {
      EXPECT_EQ(run.first(), layers);
      layers = run.last() + 1;
    }
    EXPECT_EQ(layers, request.shape.layers);
    dense |= offer.token_choice < 0 && message.overrides().tokens().policy() == "dense";
    left_out |= offer.token_choice >= 0 && !message.overrides().has_tokens() &&
                message.quality().starts_with("not measured on this model; the study");
    const auto& keep = message.overrides().tokens().keep();
    less |= offer.token_choice == 1 && keep.size() == 1 && keep[0] == 0.25;

    lemo::v1::RunSpec by_text = SpecOf(sparse);
    Violations violations;
    ApplyOverrides(OverridesOf(request, offer), &by_text, &violations);
    ASSERT_TRUE(violations.empty()) << violations.ToStatus();
    const lemo::v1::RunSpec& overrides = message.overrides();
    EXPECT_EQ(overrides.data().max_length(), by_text.data().max_length());
    EXPECT_EQ(overrides.train().micro_batch_tokens(), by_text.train().micro_batch_tokens());
    EXPECT_EQ(overrides.memory().policy(), by_text.memory().policy());
    if (!keep.empty()) {
      EXPECT_THAT(by_text.tokens().keep(), ElementsAre(keep[0]));
    }
    ASSERT_EQ(overrides.memory().layers_size(), by_text.memory().layers_size());
    for (int k = 0; k < overrides.memory().layers_size(); ++k) {
      EXPECT_EQ(overrides.memory().layers(k).SerializeAsString(),
                by_text.memory().layers(k).SerializeAsString());
    }
    EXPECT_EQ(overrides.model().compute_type(), "float32");
    EXPECT_EQ(overrides.parallel().tensor(), 1);
    EXPECT_EQ(overrides.parallel().shard(), "none");
  }
  EXPECT_TRUE(dense);
  EXPECT_TRUE(left_out);
  EXPECT_TRUE(less);
}

TEST(PlanMessage, SaysWhatABoundWouldHaveToBecome) {
  OfferRequest request = RequestOf(nlohmann::json::object());
  request.bounds = {.memory_bytes_max = 1000, .device_seconds_max = 36000};
  const lemo::v1::PlanResult result = PlanMessage(request, MakeOffers(request), {});
  EXPECT_EQ(result.offers_size(), 0);
  EXPECT_EQ(result.preferred(), "");
  EXPECT_GT(result.nearest_size(), 0);
  ASSERT_EQ(result.advice_size(), 2);
  EXPECT_EQ(result.advice(0).bound(), "max_memory_bytes");
  EXPECT_EQ(result.advice(0).asked(), 1000);
  EXPECT_GT(result.advice(0).needed(), 1000);
  EXPECT_EQ(result.advice(1).bound(), "max_device_hours");
  EXPECT_EQ(result.advice(1).asked(), 10);
}

TEST(PlanMessage, PlansOfSeveralTypesOfDevicesAreOne) {
  const auto plan_of = [](const std::string& type, double speed, int64_t bytes_max) {
    OfferRequest request = RequestOf(nlohmann::json::object());
    request.device.type = "cpu, " + type;
    request.device.compute.products *= speed;
    request.device.compute.attention *= speed;
    request.bounds.memory_bytes_max = bytes_max;
    PlanTimes times;
    times.device_type = type;
    times.rates.set_type("cpu");
    times.rates.set_products(speed);
    times.notes = {"measured"};
    return PlanMessage(request, MakeOffers(request), times);
  };
  const lemo::v1::PlanResult slow = plan_of("slow", 1, 0), fast = plan_of("fast", 3, 0);
  const lemo::v1::PlanResult both = MergedPlans({fast, slow});
  EXPECT_EQ(both.offers_size(), slow.offers_size() + fast.offers_size());
  EXPECT_EQ(both.preferred(), fast.preferred());
  EXPECT_EQ(both.rates().products(), 3);
  EXPECT_EQ(both.candidates(), slow.candidates() + fast.candidates());
  std::set<std::string> ids;
  for (int i = 0; i < both.offers_size(); ++i) {
    ids.insert(both.offers(i).id());
    if (i > 0) {
      EXPECT_GE(both.offers(i).high().total(), both.offers(i - 1).high().total());
    }
  }
  EXPECT_EQ(ids.size(), static_cast<size_t>(both.offers_size()));
  EXPECT_THAT(both.notes(), testing::IsSupersetOf({"slow: measured", "fast: measured"}));

  // Within the bounds on one of them is within the bounds.
  const lemo::v1::PlanResult none = plan_of("small", 3, 1000);
  const lemo::v1::PlanResult one = MergedPlans({slow, none});
  EXPECT_EQ(one.preferred(), slow.preferred());
  EXPECT_EQ(one.nearest_size(), 0);
  EXPECT_EQ(one.advice_size(), 0);
  // Else the easier change is told.
  lemo::v1::PlanResult nearer = none;
  nearer.mutable_advice(0)->set_needed(1001);
  const lemo::v1::PlanResult neither = MergedPlans({none, nearer});
  ASSERT_EQ(neither.advice_size(), 1);
  EXPECT_EQ(neither.advice(0).needed(), 1001);
  EXPECT_GT(neither.nearest_size(), none.nearest_size());
}

TEST(PlanTable, StorageIsTold) {
  const std::vector<LayerStorage> storage = {{Stored::kAll, false},
                                             {Stored::kAll, false},
                                             {Stored::kAttentionOut, true},
                                             {Stored::kInput, false}};
  EXPECT_EQ(StorageInWords(storage), "all x2, attn_out+offload x1, input x1");
}

// The overrides of an offer, read as lemo-train reads them, are a spec that keeps what it says.
TEST(PlanTable, OverridesMakeTheOffer) {
  OfferRequest request = RequestOf(nlohmann::json::object());
  Offer offer;
  offer.window = 512;
  offer.micro_batch_sequences = 2;
  offer.storage = {{Stored::kMlp, false},
                   {Stored::kMlp, false},
                   {Stored::kAttentionOut, true},
                   {Stored::kAttentionOut, true}};
  lemo::v1::RunSpec spec = SpecOf(nlohmann::json::object());
  Violations violations;
  ApplyOverrides(OverridesOf(request, offer), &spec, &violations);
  ASSERT_TRUE(violations.ToStatus().ok()) << violations.ToStatus();
  EXPECT_EQ(spec.data().max_length(), 512);
  EXPECT_EQ(spec.train().micro_batch_tokens(), 1024);
  EXPECT_EQ(spec.memory().policy(), "mlp");
  ASSERT_EQ(spec.memory().layers_size(), 1);
  EXPECT_EQ(spec.memory().layers(0).first(), 2);
  EXPECT_EQ(spec.memory().layers(0).last(), 3);
  EXPECT_EQ(spec.memory().layers(0).policy(), "attn_out+offload");
}

TEST(PlanTable, ShowsTheFrontOrWhatIsInTheWay) {
  OfferRequest request =
      RequestOf({{"tokens", {{"policy", "random"}, {"scope", "stack"}, {"keep", {0.5}}}}});
  const planner::Offers offers = MakeOffers(request);
  const std::string table = PlanTable(request, offers);
  const Offer& best = offers.front[*offers.preferred];
  EXPECT_THAT(table, HasSubstr("* " + best.id.substr(0, 8)));
  EXPECT_THAT(table, HasSubstr("Offer " + best.id));
  EXPECT_THAT(table, HasSubstr("attn_out"));
  request.bounds.memory_bytes_max = 1000;
  const std::string impossible = PlanTable(request, MakeOffers(request));
  EXPECT_THAT(impossible, HasSubstr("within the bounds"));
  EXPECT_THAT(impossible, HasSubstr("would do"));
  EXPECT_THAT(impossible, Not(HasSubstr("--set")));
}

}  // namespace
}  // namespace lemo::train
