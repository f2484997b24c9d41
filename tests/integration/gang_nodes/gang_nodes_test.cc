// A gang on three nodes with addresses of their own: how soon it starts, and that whatever dies,
// all of it ends in ten seconds, nothing is left, and the job goes on from its checkpoint.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <iostream>
#include <memory>

#include "lemo/v1/node_service.grpc.pb.h"
#include "tests/integration/gang_nodes/cluster.h"
#include "tests/integration/gang_nodes/processes.h"

namespace lemo::agent {
namespace {

using lemo::v1::Job;
using lemo::v1::JobEvent;
using testing::Contains;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;
using Clock = std::chrono::steady_clock;

std::string cannot_run;  // why, if it is so

// Four ranks: two on node 2, which leads, one on node 3, one on node 4.
class GangNodes : public testing::Test {
 protected:
  void SetUp() override {
    if (!cannot_run.empty()) GTEST_SKIP() << cannot_run;
    cluster_ = std::make_unique<Cluster>(LEMO_MPI_RANK, std::vector<int>{2, 1, 1});
    ASSERT_TRUE(Eventually([this] { return cluster_->Ready() == 3; }));
  }
  void TearDown() override {
    cluster_ = nullptr;
    EXPECT_TRUE(Eventually([] { return GangProcesses().empty(); })) << Names(GangProcesses());
  }

  // Runs a long job until it has shared a checkpoint and made a step beyond it.
  std::string StartLongJob(int min_ranks = 4) {
    lemo::v1::JobSpec spec = cluster_->Spec(4, "steps 100\npause_ms 40\ncheckpoint 10\n");
    spec.mutable_resources()->set_min_ranks(min_ranks);
    const std::string job = cluster_->Submit(spec).name();
    cluster_->Watch(job, [](const JobEvent& event) { return event.run().step().step() >= 15; });
    EXPECT_TRUE(Eventually([&] { return cluster_->Get(job).checkpoint().step() >= 10; }));
    EXPECT_EQ(cluster_->Get(job).nodes_size(), 3);
    return job;
  }

  // Until no process of a gang lives anywhere. What comes after belongs to the next attempt, which
  // cannot begin before the job is queued again.
  void ExpectAllGone(const std::string& cause, const std::vector<Found>& before) {
    const Clock::time_point start = Clock::now();
    std::vector<Found> left;
    const bool gone = Eventually([&] {
      left.clear();
      for (const Found& process : GangProcesses()) {
        const bool old = std::any_of(before.begin(), before.end(),
                                     [&](const Found& was) { return was.pid == process.pid; });
        if (old) left.push_back(process);
      }
      return left.empty();
    });
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    std::cout << cause << ": all of the gang gone after " << seconds << " s\n";
    EXPECT_TRUE(gone) << Names(left);
    EXPECT_LE(seconds, 10) << cause;
  }

  // The run went on from its checkpoint and each of its steps counted once.
  void ExpectGoesOn(const std::string& job, int restarts = 1) {
    const std::vector<JobEvent> events =
        cluster_->Watch(job, [](const JobEvent&) { return false; });
    const Job ended = cluster_->Get(job);
    EXPECT_EQ(ended.state(), Job::SUCCEEDED) << ended.DebugString();
    EXPECT_EQ(ended.restarts(), restarts);
    EXPECT_EQ(ended.result().train_loss(), 100 * 101 / 2);
    const bool resumed = std::any_of(events.begin(), events.end(), [](const JobEvent& event) {
      return event.run().checkpoint().reason() == "resumed" && event.attempt() > 1 &&
             event.run().checkpoint().step() >= 10;
    });
    EXPECT_TRUE(resumed);
  }

  // Why the attempt ended.
  std::string CauseOf(const std::string& job, int* rank = nullptr) {
    std::string cause;
    cluster_->Watch(job, [&](const JobEvent& event) {
      if (event.state().to() != Job::QUEUED || !event.state().has_failure()) return false;
      cause = event.state().failure().message();
      if (rank != nullptr) *rank = event.state().failure().rank();
      return true;
    });
    return cause;
  }

  static pid_t PidOf(const std::vector<Found>& processes, const std::string& program, int rank,
                     const std::string& command = "") {
    for (const Found& process : processes) {
      if (process.program == program && process.rank == rank &&
          process.command.find(command) != std::string::npos) {
        return process.pid;
      }
    }
    ADD_FAILURE() << "no " << program << " of rank " << rank << ":\n" << Names(processes);
    return -1;
  }

  std::unique_ptr<Cluster> cluster_;
};

TEST_F(GangNodes, TrainsOverThreeNodes) {
  const std::string job = cluster_->Submit(cluster_->Spec(4, "steps 30\npause_ms 30\n")).name();
  double placed = 0, reduced = 0;
  cluster_->Watch(job, [&](const JobEvent& event) {
    const double time = static_cast<double>(event.time().seconds()) + event.time().nanos() * 1e-9;
    if (event.state().to() == Job::STARTING) placed = time;
    if (event.run().phase().name() == "reduced") {
      reduced = std::stod(event.run().phase().detail()) / 1000;
    }
    return reduced > 0;
  });
  const double seconds = reduced - placed;
  std::cout << "4 ranks on 3 nodes: first all-reduce " << seconds
            << " s after they were placed, models and files fetched in between\n";
  EXPECT_GT(seconds, 0);
  EXPECT_LE(seconds, 10);  // 3 s on a machine that has nothing else to do

  const std::vector<Found> processes = GangProcesses();
  const Job running = cluster_->Get(job);
  ASSERT_EQ(running.state(), Job::RUNNING) << running.DebugString();
  ASSERT_THAT(running.nodes(), SizeIs(3));
  EXPECT_EQ(running.nodes(0).host(), "node-2");
  EXPECT_EQ(running.worker(), cluster_->Worker(2));
  // Each rank is where it should be, and they have three networks.
  std::vector<std::string> networks;
  for (int rank = 0; rank < 4; ++rank) {
    for (const Found& process : processes) {
      if (process.program == "lemo_mpi_rank" && process.rank == rank) {
        networks.push_back(process.network);
      }
    }
  }
  ASSERT_THAT(networks, SizeIs(4)) << Names(processes);
  EXPECT_EQ(networks[0], networks[1]);
  EXPECT_NE(networks[1], networks[2]);
  EXPECT_NE(networks[2], networks[3]);
  const std::vector<Listener> listeners = PortsListenedOn(processes);
  EXPECT_THAT(listeners, Not(IsEmpty()));
  for (const Listener& listener : listeners) {
    EXPECT_GE(listener.port, 17000) << listener.address << " " << listener.command;
    EXPECT_LE(listener.port, 17199) << listener.address << " " << listener.command;
  }

  const Job ended = cluster_->Finish(job);
  EXPECT_EQ(ended.state(), Job::SUCCEEDED) << ended.DebugString();
  EXPECT_EQ(ended.restarts(), 0);
  EXPECT_EQ(ended.result().train_loss(), 30 * 31 / 2);
  // Every rank's log came, from the node that it was on.
  const std::string host_of[] = {"node-2", "node-2", running.nodes(1).host(),
                                 running.nodes(2).host()};
  for (int rank = 0; rank < 4; ++rank) {
    const int node = std::stoi(host_of[rank].substr(5));
    EXPECT_THAT(cluster_->Log(job, rank, 1),
                HasSubstr("rank " + std::to_string(rank) + " of 4 in " +
                          cluster_->AgentDirectory(node).string()));
  }
  EXPECT_TRUE(Eventually([] { return GangProcesses().empty(); })) << Names(GangProcesses());
  // The jobs' directories go, with the scratch space of Open MPI in them.
  for (const int node : {2, 3, 4}) {
    EXPECT_TRUE(Eventually([&] {
      return !std::filesystem::exists(cluster_->AgentDirectory(node) / job / "mpi");
    })) << node;
  }
}

TEST_F(GangNodes, ARankOnAnotherNodeThatIsKilledIsNamedAndTheJobGoesOn) {
  const std::string job = StartLongJob();
  const std::vector<Found> before = GangProcesses();
  ::kill(PidOf(before, "lemo_mpi_rank", 3), SIGKILL);
  ExpectAllGone("rank 3 killed", before);
  int rank = -1;
  EXPECT_THAT(CauseOf(job, &rank), HasSubstr("rank 3 was ended by SIGKILL"));
  EXPECT_EQ(rank, 3);
  ExpectGoesOn(job);
}

TEST_F(GangNodes, ARankOfTheLeadThatIsKilledIsNamed) {
  const std::string job = StartLongJob();
  const std::vector<Found> before = GangProcesses();
  ::kill(PidOf(before, "lemo_mpi_rank", 0), SIGKILL);
  ExpectAllGone("rank 0 killed", before);
  EXPECT_THAT(CauseOf(job), HasSubstr("rank 0 was ended by SIGKILL"));
  ExpectGoesOn(job);
}

TEST_F(GangNodes, AnAgentThatIsKilledTakesTheGangWithIt) {
  const std::string job = StartLongJob();
  const std::vector<Found> before = GangProcesses();
  cluster_->KillAgent(3);
  ExpectAllGone("agent of node 3 killed", before);
  cluster_->StartAgent(3);
  ExpectGoesOn(job);
}

TEST_F(GangNodes, ALeadThatIsKilledTakesTheGangWithIt) {
  const std::string job = StartLongJob();
  const std::vector<Found> before = GangProcesses();
  cluster_->KillAgent(2);
  ExpectAllGone("agent of the lead killed", before);
  cluster_->StartAgent(2);
  ExpectGoesOn(job);
}

TEST_F(GangNodes, ANodeThatIsCutOffEndsEverywhere) {
  const std::string job = StartLongJob();
  const std::vector<Found> before = GangProcesses();
  cluster_->network().Cut(4);
  ExpectAllGone("node 4 cut off", before);
  const std::string cause = CauseOf(job);
  EXPECT_THAT(cause, HasSubstr(cluster_->Worker(4)));
  EXPECT_THAT(cause, HasSubstr("was lost"));
  cluster_->network().Join(4);
  ExpectGoesOn(job);
}

TEST_F(GangNodes, ALeadThatIsCutOffEndsEverywhere) {
  const std::string job = StartLongJob();
  const std::vector<Found> before = GangProcesses();
  cluster_->network().Cut(2);
  ExpectAllGone("the lead cut off", before);
  cluster_->network().Join(2);
  ExpectGoesOn(job);
}

TEST_F(GangNodes, WhateverOfOpenMpiIsKilledEndsEverywhere) {
  const std::string job = StartLongJob();
  std::vector<Found> before = GangProcesses();
  ::kill(PidOf(before, "orted", -1), SIGKILL);
  ExpectAllGone("a daemon of Open MPI killed", before);
  EXPECT_THAT(CauseOf(job), HasSubstr("Open MPI's daemon on workers/"));
  const auto running_again = [&](int attempt) {
    cluster_->Watch(job, [&](const JobEvent& event) {
      return event.attempt() == attempt && event.run().has_step();
    });
  };
  running_again(2);
  before = GangProcesses();
  ::kill(PidOf(before, "orterun", -1), SIGKILL);
  ExpectAllGone("mpirun killed", before);
  running_again(3);
  before = GangProcesses();
  ::kill(PidOf(before, "lemo-worker", -1, " exec lemo-1"), SIGKILL);
  ExpectAllGone("a call of lemo-worker exec killed", before);
  ExpectGoesOn(job, 3);
}

// Of attempt 1, asked to stop: the ranks' own last checkpoint.
bool CheckpointedWhenAsked(const std::vector<JobEvent>& events) {
  return std::any_of(events.begin(), events.end(), [](const JobEvent& event) {
    return event.attempt() == 1 && event.run().checkpoint().reason() == "signal";
  });
}

TEST_F(GangNodes, APauseLetsAllRanksCheckpoint) {
  const std::string job = StartLongJob();
  cluster_->Pause(job);
  const std::vector<JobEvent> events =
      cluster_->Watch(job, [](const JobEvent& event) { return event.state().to() == Job::PAUSED; });
  EXPECT_TRUE(CheckpointedWhenAsked(events));
  EXPECT_THAT(GangProcesses(), IsEmpty());  // before it was told
  cluster_->Resume(job);
  ExpectGoesOn(job, /*restarts=*/0);
}

TEST_F(GangNodes, ADrainedNodeLetsAllRanksCheckpointAndTheRestGoesOn) {
  const std::string job = StartLongJob(/*min_ranks=*/2);
  EXPECT_EQ(cluster_->DrainAgent(4), 0);
  EXPECT_TRUE(CheckpointedWhenAsked(cluster_->Watch(job, [](const JobEvent& event) {
    return event.state().to() == Job::QUEUED && event.attempt() == 1;
  })));
  ExpectGoesOn(job, /*restarts=*/0);
  EXPECT_THAT(cluster_->Log(job, 0, 2), HasSubstr("rank 0 of 3"));
}

TEST_F(GangNodes, WaitsForANodeWhenItMayNotShrink) {
  const std::string job = StartLongJob();
  cluster_->KillAgent(4);  // for good: with fewer ranks it could, but it was not allowed to
  EXPECT_THAT(CauseOf(job), HasSubstr("was lost"));
  EXPECT_TRUE(Eventually([&] {
    return cluster_->Get(job).reason_code() == Job::WORKERS_CORDONED ||
           cluster_->Get(job).reason_code() == Job::NO_SUCH_DEVICE;
  })) << cluster_->Get(job).reason();
  cluster_->StartAgent(4);
  ExpectGoesOn(job);
}

TEST_F(GangNodes, GoesOnWithFewerRanksWhenANodeStaysAway) {
  const std::string job = StartLongJob(/*min_ranks=*/2);
  cluster_->KillAgent(4);
  ExpectGoesOn(job);
  const Job ended = cluster_->Get(job);
  int ranks = 0;
  for (const lemo::v1::GangNode& node : ended.nodes()) ranks += node.devices_size();
  EXPECT_EQ(ranks, 3);
  EXPECT_THAT(cluster_->Log(job, 0, 2), HasSubstr("rank 0 of 3"));
}

// As `lemo up` and a demonstration have it: Open MPI must not find out that its nodes are one.
TEST_F(GangNodes, TwoAgentsOfOneMachineShareAJob) {
  cluster_ = nullptr;
  cluster_ =
      std::make_unique<Cluster>(LEMO_MPI_RANK, std::vector<int>{2, 2}, Cluster::Nodes::kOneMachine);
  ASSERT_TRUE(Eventually([this] { return cluster_->Ready() == 2; }));
  const Job ended =
      cluster_->Finish(cluster_->Submit(cluster_->Spec(4, "steps 50\npause_ms 1\n")).name());
  EXPECT_EQ(ended.state(), Job::SUCCEEDED) << ended.DebugString();
  EXPECT_EQ(ended.nodes_size(), 2);
  EXPECT_EQ(ended.restarts(), 0);
  EXPECT_EQ(ended.result().train_loss(), 50 * 51 / 2);
}

TEST_F(GangNodes, NobodyWithoutTheTokenIsServed) {
  const std::string job = StartLongJob();
  lemo::v1::ListWorkersResponse workers;
  grpc::ClientContext context;
  cluster_->service().ListWorkers(&context, {}, &workers);
  std::string address;
  for (const lemo::v1::Worker& worker : workers.workers()) {
    if (worker.host() == "node-3") address = worker.address();
  }
  const auto stub = lemo::v1::NodeService::NewStub(
      grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  lemo::v1::EndRanksRequest end;
  end.mutable_key()->mutable_id()->set_job(job);
  end.mutable_key()->mutable_id()->set_attempt(1);
  for (const std::string& token : {std::string(), std::string(64, '0')}) {
    end.mutable_key()->set_token(token);
    grpc::ClientContext call;
    lemo::v1::EndRanksResponse response;
    EXPECT_EQ(stub->EndRanks(&call, end, &response).error_code(),
              grpc::StatusCode::PERMISSION_DENIED);
  }
  {
    grpc::ClientContext call;
    const auto stream = stub->RunDaemon(&call);
    lemo::v1::DaemonInput input;
    *input.mutable_start()->mutable_key() = end.key();
    input.mutable_start()->add_arguments("--version");
    stream->Write(input);
    lemo::v1::DaemonOutput output;
    EXPECT_FALSE(stream->Read(&output));
    EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::PERMISSION_DENIED);
  }
  end.mutable_key()->mutable_id()->set_attempt(2);
  grpc::ClientContext call;
  lemo::v1::EndRanksResponse response;
  EXPECT_EQ(stub->EndRanks(&call, end, &response).error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(cluster_->Get(job).attempt(), 1);
  EXPECT_EQ(cluster_->Get(job).state(), Job::RUNNING);
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
