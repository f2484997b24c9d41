#include "worker/train/report/curve.h"

#include <cmath>

#include "gtest/gtest.h"

namespace lemo::train {
namespace {

lemo::v1::StepEvent Step(int step, double loss, int64_t labelled) {
  lemo::v1::StepEvent out;
  out.set_step(step);
  out.set_loss(loss);
  out.set_labelled_tokens(labelled);
  out.set_tokens(10);
  out.set_seconds(0.5);
  out.set_grad_norm(step % 7);
  out.set_learning_rate(step);
  return out;
}

TEST(TrainingCurve, FewStepsStayAsTheyAre) {
  TrainingCurve curve;
  for (int i = 1; i <= 1024; ++i) curve.Add(Step(i, i, 1));
  EXPECT_EQ(curve.window(), 1);
  ASSERT_EQ(curve.points().size(), 1024u);
  EXPECT_EQ(curve.points()[9].loss(), 10);
}

TEST(TrainingCurve, StaysBoundedAndLosesNoToken) {
  for (int steps : {1025, 1026, 2048, 2049, 5000, 100003}) {
    TrainingCurve curve;
    double loss = 0, labelled = 0;
    for (int i = 1; i <= steps; ++i) {
      curve.Add(Step(i, i % 13, 1 + i % 5));
      loss += (i % 13) * (1 + i % 5);
      labelled += 1 + i % 5;
    }
    EXPECT_LE(curve.points().size(), TrainingCurve::kMaxPoints);
    EXPECT_GT(curve.points().size(), TrainingCurve::kMaxPoints / 2);
    double sum = 0, tokens = 0, labels = 0, seconds = 0;
    int64_t before = 0;
    for (const auto& point : curve.points()) {
      sum += point.loss() * point.labelled_tokens();
      labels += point.labelled_tokens();
      tokens += point.tokens();
      seconds += point.seconds();
      EXPECT_LE(point.step() - before, curve.window());
      before = point.step();
    }
    EXPECT_EQ(before, steps);
    EXPECT_EQ(labels, labelled);
    EXPECT_EQ(tokens, 10.0 * steps);
    EXPECT_NEAR(seconds, 0.5 * steps, 1e-6);
    EXPECT_NEAR(sum / labels, loss / labelled, 1e-9);
  }
}

TEST(TrainingCurve, WindowsAreWhole) {
  TrainingCurve curve;
  for (int i = 1; i <= 3000; ++i) curve.Add(Step(i, i, 1));
  EXPECT_EQ(curve.window(), 4);
  EXPECT_EQ(curve.points()[0].step(), 4);
  EXPECT_EQ(curve.points()[0].loss(), 2.5);
  EXPECT_EQ(curve.points()[0].grad_norm(), 4);
  EXPECT_EQ(curve.points()[1].grad_norm(), 6);  // steps 5 to 8: 5, 6, 0, 1
  EXPECT_EQ(curve.points()[1].learning_rate(), 8);
  EXPECT_EQ(curve.points()[1].tokens_per_second(), 20);
}

TEST(TrainingCurve, SharesOfRowsWeighAsTheRows) {
  TrainingCurve curve = TrainingCurve::FromPoints({}, 4);
  for (int i = 1; i <= 4; ++i) {
    auto step = Step(i, 1, i == 4 ? 6 : 2);
    step.set_tokens(i == 4 ? 30 : 10);
    if (i != 2) {  // a step of all rows
      auto* sparsity = step.mutable_sparsity();
      for (const double share : {0.25, 0.75}) sparsity->add_attention_kept(share);
      for (const double share : {1.0, 1.0}) sparsity->add_mlp_kept(share);
      sparsity->set_never_kept(0.5);
      sparsity->set_loss_kept(i == 4 ? 0.25 : 0.75);
      sparsity->set_bad_blocks(i);
      sparsity->set_selection_seconds(0.125);
      if (i == 3) {
        for (const double share : {0.5, 1.0}) sparsity->add_recall(share);
        for (const int layer : {4, 7}) sparsity->add_recall_layers(layer);
      }
    }
    curve.Add(step);
  }
  ASSERT_EQ(curve.points().size(), 1u);
  const auto& sparsity = curve.points()[0].sparsity();
  ASSERT_EQ(sparsity.attention_kept_size(), 1);
  ASSERT_EQ(sparsity.mlp_kept_size(), 1);
  EXPECT_DOUBLE_EQ(sparsity.attention_kept(0), (0.5 * 50 + 10) / 60);
  EXPECT_DOUBLE_EQ(sparsity.mlp_kept(0), 1);
  EXPECT_DOUBLE_EQ(sparsity.never_kept(), 0.5 * 50 / 60);
  EXPECT_DOUBLE_EQ(sparsity.loss_kept(), (0.75 * 4 + 2 + 0.25 * 6) / 12);
  EXPECT_EQ(sparsity.bad_blocks(), 1 + 3 + 4);
  EXPECT_DOUBLE_EQ(sparsity.selection_seconds(), 0.375);
  ASSERT_EQ(sparsity.recall_size(), 1);
  EXPECT_DOUBLE_EQ(sparsity.recall(0), 0.75);
  EXPECT_EQ(sparsity.recall_layers_size(), 0);
}

TEST(TrainingCurve, NanDoesNotGetLost) {
  for (int bad : {1, 2}) {
    TrainingCurve curve = TrainingCurve::FromPoints({}, 2);
    for (int i = 1; i <= 2; ++i) {
      auto step = Step(i, 1, 1);
      if (i == bad) step.set_grad_norm(NAN);
      curve.Add(step);
    }
    ASSERT_EQ(curve.points().size(), 1u);
    EXPECT_TRUE(std::isnan(curve.points()[0].grad_norm())) << bad;
  }
}

}  // namespace
}  // namespace lemo::train
