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
