// The segmented loss against log_softmax and nll_loss over all rows.
#include "worker/train/objective/objective.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/support/tiny_model.h"
#include "worker/train/memory/counting_allocator.h"
#include "worker/train/model/random_tensor.h"

namespace lemo::train {
namespace {

using testing::FullSpec;
using testing::LoraSpec;
using testing::RelativeError;
using testing::TinyConfig;

constexpr uint64_t kSeed = 20261121;
constexpr int64_t kIgnored = -100;

struct Model {
  Model(DecoderConfig made, at::ScalarType type, const lemo::v1::TunerSpec& spec)
      : config(std::move(made)),
        weights(RandomWeights(config, kSeed, type, at::kCPU)),
        decoder(config, weights),
        tuner(*MakeTuner(spec)),
        trainables(*tuner->Attach(decoder, kSeed)) {}

  Trainable* Find(const std::string& name) {
    for (Trainable& trainable : trainables) {
      if (trainable.name == name) return &trainable;
    }
    return nullptr;
  }

  DecoderConfig config;
  ModelWeights weights;
  Decoder decoder;
  std::unique_ptr<Tuner> tuner;
  Trainables trainables;
};

DecoderConfig Config(bool tied) {
  DecoderConfig config = TinyConfig("gqa");
  config.tied_embeddings = tied;
  return config;
}

at::Tensor RandomStream(const Model& model, int64_t rows) {
  return NormalTensor({rows, model.config.hidden}, 1.0, kSeed, "stream").to(model.decoder.type);
}

// Random labels, of which every `ignored_every`-th is ignored; 0 for none.
at::Tensor RandomLabels(const Model& model, int64_t rows, int64_t ignored_every) {
  const double vocabulary = static_cast<double>(model.config.vocabulary);
  at::Tensor labels =
      ((UniformTensor({rows}, 0.5, kSeed, "labels") + 0.5) * vocabulary).floor().to(at::kLong);
  for (int64_t i = 0; ignored_every > 0 && i < rows; i += ignored_every) labels[i] = kIgnored;
  return labels;
}

struct Plain {
  double loss = 0;
  int64_t correct = 0;
  at::Tensor stream, norm, head;  // gradients
};

Plain PlainLoss(const Model& model, const at::Tensor& rows, const at::Tensor& labels,
                double scale) {
  const auto leaf = [](const at::Tensor& t) { return t.detach().clone().requires_grad_(true); };
  const at::Tensor x = leaf(rows), norm = leaf(model.decoder.final_norm);
  const at::Tensor head = leaf(model.decoder.head);
  const at::Tensor normed =
      norm * (x * at::rsqrt(x.pow(2).mean(-1, true) + model.config.rms_norm_eps));
  const at::Tensor logits = at::matmul(normed, head.t());
  const at::Tensor loss =
      at::nll_loss(at::log_softmax(logits, -1), labels, {}, at::Reduction::Sum, kIgnored);
  (loss * scale).backward();
  return {loss.item<double>(), logits.argmax(-1).eq(labels).sum().item<int64_t>(), x.grad(),
          norm.grad(), head.grad()};
}

struct Case {
  at::ScalarType type;
  bool tied;
  std::string tuner;
  int64_t segment_rows;
  int64_t ignored_every;
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << (c.type == at::kDouble ? "fp64 " : "fp32 ") << (c.tied ? "tied " : "untied ") << c.tuner
       << " segment " << c.segment_rows << " ignored " << c.ignored_every;
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const auto type : {at::kDouble, at::kFloat}) {
    for (const bool tied : {true, false}) {
      for (const std::string tuner : {"full", "lora"}) {
        // 23 rows: one a segment, segments that do not divide them, exactly one segment, a larger
        // one.
        for (const int64_t segment_rows : {1, 7, 23, 100}) {
          for (const int64_t ignored_every : {0, 3}) {
            cases.push_back({type, tied, tuner, segment_rows, ignored_every});
          }
        }
      }
    }
  }
  return cases;
}

class SegmentedLoss : public ::testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(All, SegmentedLoss, ::testing::ValuesIn(Cases()));

TEST_P(SegmentedLoss, EqualsThePlainLoss) {
  const Case& c = GetParam();
  Model model(Config(c.tied), c.type, c.tuner == "full" ? FullSpec() : LoraSpec());
  const at::Tensor rows = RandomStream(model, 23);
  at::Tensor labels = RandomLabels(model, 23, c.ignored_every);
  const double scale = 0.37, bound = c.type == at::kDouble ? 1e-12 : 1e-6;
  {
    // Some rows that are right, so that their count says something.
    const at::NoGradGuard no_grad;
    const at::Tensor best =
        at::linear(FinalNorm(model.decoder, rows), model.decoder.head).argmax(-1);
    for (const int64_t row : {4, 5, 20}) labels[row] = best[row];
  }
  const Plain plain = PlainLoss(model, rows, labels, scale);
  ASSERT_GE(plain.correct, 3);

  CrossEntropyObjective objective(model.decoder, model.trainables, c.segment_rows);
  EXPECT_EQ(objective.segment_rows(), c.segment_rows);
  const at::Tensor stream = rows.clone();
  const LossSums loss = objective.Loss(stream, labels);
  EXPECT_TRUE(at::equal(stream, rows)) << "evaluation changed the stream";
  const LossSums sums = objective.LossAndGradient(stream, labels, scale);
  for (const LossSums& each : {loss, sums}) {
    EXPECT_NEAR(each.loss, plain.loss, bound * plain.loss);
    EXPECT_EQ(each.labelled, labels.ne(kIgnored).sum().item<int64_t>());
    EXPECT_EQ(each.correct, plain.correct);
  }
  EXPECT_LE(RelativeError(stream, plain.stream), bound);
  for (int64_t row = 0; row < 23; ++row) {
    if (labels[row].item<int64_t>() == kIgnored) {
      EXPECT_TRUE(stream[row].eq(0).all().item<bool>()) << row;
    }
  }

  Trainable* norm = model.Find("model.norm.weight");
  Trainable* head = model.Find(c.tied ? "model.embed_tokens.weight" : "lm_head.weight");
  ASSERT_EQ(norm != nullptr, c.tuner == "full");
  ASSERT_EQ(head != nullptr, c.tuner == "full");
  if (norm == nullptr) {
    for (const Trainable& trainable : model.trainables) {
      EXPECT_TRUE(trainable.grad.eq(0).all().item<bool>()) << trainable.name;
    }
    return;
  }
  EXPECT_LE(RelativeError(norm->grad, plain.norm), bound);
  EXPECT_LE(RelativeError(head->grad, plain.head), bound);
  // A second micro-batch is added to the first.
  const at::Tensor again = rows.clone();
  objective.LossAndGradient(again, labels, scale);
  EXPECT_LE(RelativeError(norm->grad, 2 * plain.norm), bound);
  EXPECT_LE(RelativeError(head->grad, 2 * plain.head), bound);
}

TEST(CrossEntropyObjective, WithoutLabelsThereIsNoLossAndNoGradient) {
  Model model(Config(true), at::kFloat, FullSpec());
  CrossEntropyObjective objective(model.decoder, model.trainables, 4);
  const at::Tensor stream = RandomStream(model, 9);
  const at::Tensor labels = at::full({9}, kIgnored, at::kLong);
  const LossSums sums = objective.LossAndGradient(stream, labels, 1.0);
  EXPECT_EQ(sums.loss, 0.0);
  EXPECT_EQ(sums.labelled, 0);
  EXPECT_EQ(sums.correct, 0);
  EXPECT_TRUE(stream.eq(0).all().item<bool>());
  for (const Trainable& trainable : model.trainables) {
    EXPECT_TRUE(trainable.grad.eq(0).all().item<bool>()) << trainable.name;
  }
  EXPECT_EQ(objective.Loss(RandomStream(model, 9), labels).labelled, 0);
}

TEST(CrossEntropyObjective, RowsWithoutLabelsMayHoldAnything) {
  Model model(Config(true), at::kFloat, FullSpec());
  CrossEntropyObjective objective(model.decoder, model.trainables, 4);
  const at::Tensor stream = RandomStream(model, 3);
  stream[1].fill_(std::numeric_limits<float>::quiet_NaN());
  const LossSums sums = objective.LossAndGradient(stream, at::tensor({5, -100, 7}, at::kLong), 1.0);
  EXPECT_TRUE(std::isfinite(sums.loss));
  EXPECT_EQ(sums.labelled, 2);
  EXPECT_TRUE(stream.isfinite().all().item<bool>());
  EXPECT_TRUE(stream[1].eq(0).all().item<bool>());
}

TEST(CrossEntropyObjective, LogitsAreTheHeadsProduct) {
  Model model(Config(false), at::kDouble, FullSpec());
  CrossEntropyObjective objective(model.decoder, model.trainables, 4);
  const at::Tensor rows = RandomStream(model, 5), logits = objective.Logits(rows);
  const at::Tensor x = rows * at::rsqrt(rows.pow(2).mean(-1, true) + model.config.rms_norm_eps);
  EXPECT_LE(RelativeError(logits, at::matmul(x * model.decoder.final_norm, model.decoder.head.t())),
            1e-14);
}

TEST(CrossEntropyObjective, ChoosesSegmentsOfHalfAGibibyte) {
  const auto chosen = [](int64_t vocabulary) {
    DecoderConfig config = Config(true);
    config.vocabulary = vocabulary;
    Model model(config, at::kFloat, LoraSpec());
    return CrossEntropyObjective(model.decoder, model.trainables, 0).segment_rows();
  };
  EXPECT_EQ(chosen(29), 1024) << "a CPU gains nothing from more";
  EXPECT_EQ(chosen(100000), (int64_t{512} << 20) / 600000);
}

// No [rows, vocabulary] tensor: the peak is that of one segment's logits, whatever the number of
// rows.
TEST(CrossEntropyObjective, MemoryIsThatOfOneSegment) {
  InstallCountingAllocator();
  at::set_num_threads(2);  // oneDNN keeps packed blocks for each
  const int64_t segment = 32, vocabulary = 20000;
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    for (const bool trains_head : {false, true}) {
      DecoderConfig config = Config(false);
      config.vocabulary = vocabulary;
      Model model(config, type, trains_head ? FullSpec() : LoraSpec());
      CrossEntropyObjective objective(model.decoder, model.trainables, segment);
      const auto element = static_cast<int64_t>(c10::elementSize(type));
      for (const int64_t rows : {512, 1024}) {
        const at::Tensor stream = RandomStream(model, rows);
        const at::Tensor labels = RandomLabels(model, rows, 0);
        const int64_t logits = segment * vocabulary * element;
        // Beside the logits: a few vectors of a segment's rows, the mask, the list of labelled
        // rows, the blocks that a product packs. One byte a logit is enough for them.
        int64_t bound = logits + segment * vocabulary;
        // In bfloat16 the gradient of a head that trains is made before it is added in fp32.
        if (trains_head && type == at::kBFloat16) bound += vocabulary * config.hidden * (2 + 4);
        // Where the CPU multiplies tiles of bfloat16 (AMX), oneDNN packs the head, its width
        // padded.
        if (type == at::kBFloat16) bound += vocabulary * 128 * 2;
        for (const bool gradient : {true, false}) {
          ResetPeakMemory();
          const int64_t before = CurrentMemory()[MemoryCategory::kLoss];
          if (gradient) {
            objective.LossAndGradient(stream, labels, 1.0);
          } else {
            objective.Loss(stream, labels);
          }
          const int64_t peak = PeakMemory()[MemoryCategory::kLoss] - before;
          EXPECT_GE(peak, logits);
          EXPECT_LE(peak, bound);
          EXPECT_LT(peak, rows * vocabulary * element);
          EXPECT_EQ(CurrentMemory()[MemoryCategory::kLoss], before);
        }
      }
    }
  }
}

}  // namespace
}  // namespace lemo::train
