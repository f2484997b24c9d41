// One run on two nodes with addresses of their own is the run of one rank, undisturbed and after a
// node was lost.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <iostream>
#include <string>
#include <vector>

#include "tests/e2e/train/workspace.h"
#include "tests/integration/gang_nodes/cluster.h"
#include "tests/integration/gang_nodes/processes.h"

namespace lemo::agent {
namespace {

using lemo::v1::Job;
using lemo::v1::JobEvent;

std::string cannot_run;  // why, if it is so

double Seconds(const JobEvent& event) {
  return static_cast<double>(event.time().seconds()) + event.time().nanos() * 1e-9;
}

// Nodes 2 and 3 with two devices each.
class GangTrain : public testing::Test {
 protected:
  void SetUp() override {
    if (!cannot_run.empty()) GTEST_SKIP() << cannot_run;
    cluster_ = std::make_unique<Cluster>(train::Workspace::Program(), std::vector<int>{2, 2});
    ASSERT_TRUE(Eventually([this] { return cluster_->Ready() == 2; }));
    for (const char* file : {"train.jsonl", "eval.jsonl"}) {
      names_.push_back(cluster_->Upload(file, train::ReadAll(workspace_.path() / file)));
    }
  }
  void TearDown() override {
    cluster_ = nullptr;
    EXPECT_TRUE(Eventually([] { return GangProcesses().empty(); })) << Names(GangProcesses());
  }

  lemo::v1::JobSpec Spec(int ranks, int steps) const {
    lemo::v1::JobSpec spec;
    lemo::v1::RunSpec& run = *spec.mutable_run();
    run.mutable_model()->set_path("models/tiny");
    run.mutable_model()->set_compute_type("float32");
    run.mutable_data()->add_train()->set_path(names_[0]);
    run.mutable_data()->add_eval()->set_path(names_[1]);
    run.mutable_data()->set_max_length(64);
    lemo::v1::LoraSpec& lora = *run.mutable_tuner()->mutable_lora();
    lora.set_rank(4);
    for (const char* target : {"q_proj", "o_proj", "down_proj"}) lora.add_targets(target);
    run.mutable_train()->set_steps(steps);
    run.mutable_train()->set_batch_sequences(4);
    run.mutable_train()->set_learning_rate(0.003);
    run.mutable_train()->set_seed(7);
    run.mutable_checkpoint()->set_every_steps(5);
    if (ranks > 1) run.mutable_parallel()->set_tensor(2);
    spec.mutable_resources()->set_ranks(ranks);
    spec.mutable_restart()->set_backoff_seconds(0.1);
    return spec;
  }

  train::Workspace workspace_;
  std::vector<std::string> names_;
  std::unique_ptr<Cluster> cluster_;
};

TEST_F(GangTrain, TwoNodesMakeTheRunOfOneRank) {
  const Job alone = cluster_->Finish(cluster_->Submit(Spec(1, 10)).name());
  ASSERT_EQ(alone.state(), Job::SUCCEEDED) << alone.ShortDebugString();
  const std::string job = cluster_->Submit(Spec(4, 10)).name();
  double placed = 0, loads = 0, loaded = 0, stepped = 0;
  for (const JobEvent& event : cluster_->Watch(job, [](const JobEvent&) { return false; })) {
    if (event.state().to() == Job::STARTING) placed = Seconds(event);
    if (event.run().phase().name() == "load") loads = Seconds(event);
    if (event.run().phase().name() == "train") loaded = Seconds(event);
    if (event.run().step().step() == 1) stepped = Seconds(event);
  }
  std::cout << "4 ranks on 2 nodes: first step " << stepped - placed
            << " s after they were placed, " << loaded - loads << " s of it loading\n";
  const Job together = cluster_->Get(job);
  ASSERT_EQ(together.state(), Job::SUCCEEDED) << together.ShortDebugString();
  EXPECT_EQ(together.nodes_size(), 2);
  EXPECT_EQ(together.restarts(), 0);
  EXPECT_NEAR(together.result().eval_loss(), alone.result().eval_loss(),
              1e-6 * alone.result().eval_loss());
}

TEST_F(GangTrain, ARunThatLosesANodeGoesOnWithTheSameLosses) {
  const Job alone = cluster_->Finish(cluster_->Submit(Spec(1, 60)).name());
  ASSERT_EQ(alone.state(), Job::SUCCEEDED) << alone.ShortDebugString();
  const std::string job = cluster_->Submit(Spec(4, 60)).name();
  cluster_->Watch(job, [](const JobEvent& event) { return event.run().step().step() >= 7; });
  cluster_->KillAgent(3);
  cluster_->StartAgent(3);
  const std::vector<JobEvent> events = cluster_->Watch(job, [](const JobEvent&) { return false; });
  const Job together = cluster_->Get(job);
  ASSERT_EQ(together.state(), Job::SUCCEEDED) << together.ShortDebugString();
  EXPECT_EQ(together.restarts(), 1);
  EXPECT_TRUE(std::any_of(events.begin(), events.end(), [](const JobEvent& event) {
    return event.attempt() == 2 && event.run().checkpoint().reason() == "resumed";
  }));
  EXPECT_NEAR(together.result().eval_loss(), alone.result().eval_loss(),
              1e-5 * alone.result().eval_loss());
}

}  // namespace
}  // namespace lemo::agent

int main(int argc, char** argv) {
  testing::InitGoogleMock(&argc, argv);
  lemo::agent::MarkProcesses(std::to_string(::getpid()));
  // Before gRPC or anything else has made a thread.
  lemo::agent::cannot_run = lemo::agent::Network::Enter();
  return RUN_ALL_TESTS();
}
