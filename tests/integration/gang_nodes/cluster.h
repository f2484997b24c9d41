// A coordinator and agents, each on a node of its own, and a client of theirs.
#pragma once

#include <grpcpp/grpcpp.h>

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "lemo/v1/cluster_service.grpc.pb.h"
#include "lemo/v1/file_service.grpc.pb.h"
#include "lemo/v1/job_service.grpc.pb.h"
#include "lemo/v1/model_service.grpc.pb.h"
#include "tests/integration/gang_nodes/network.h"

namespace lemo::agent {

class Cluster {
 public:
  // Node `2 + i` has devices[i] CPU devices. Or all agents are on one machine, and reach each other
  // by loopback.
  enum class Nodes { kOfTheirOwn, kOneMachine };
  // `train` is the program that ranks run.
  Cluster(std::string train, std::vector<int> devices, Nodes nodes = Nodes::kOfTheirOwn);
  ~Cluster();

  void StartAgent(int node);
  void KillAgent(int node);  // SIGKILL
  int DrainAgent(int node);  // SIGTERM; its exit code, or -1
  Network& network() { return network_; }
  // Of the worker that is on the node.
  std::string Worker(int node);
  std::filesystem::path AgentDirectory(int node) const;

  // Agents that are ready for jobs.
  int Ready();

  // Answers the file's name.
  std::string Upload(const std::string& name, const std::string& data);
  // A run of so many steps, as mpi_rank.cc has it. Of the one model there is, `models/tiny`.
  lemo::v1::JobSpec Spec(int ranks, const std::string& script);
  lemo::v1::Job Submit(const lemo::v1::JobSpec& spec);
  lemo::v1::Job Get(const std::string& job);
  void Pause(const std::string& job);
  void Resume(const std::string& job);
  // Follows the job's events until `enough` says so, or it ends. All of them so far.
  std::vector<lemo::v1::JobEvent> Watch(
      const std::string& job, const std::function<bool(const lemo::v1::JobEvent&)>& enough);
  // Follows it to its end.
  lemo::v1::Job Finish(const std::string& job);
  std::string Log(const std::string& job, int rank, int attempt);
  lemo::v1::ClusterService::StubInterface& service() { return *cluster_; }

 private:
  void StartCoordinator();

  const std::string train_;
  const std::vector<int> devices_;
  const Nodes nodes_;
  std::filesystem::path directory_;
  Network network_;
  std::map<int, std::string> addresses_;
  std::string coordinator_address_;
  pid_t coordinator_ = 0;
  std::map<int, pid_t> agents_;
  std::unique_ptr<lemo::v1::JobService::Stub> jobs_;
  std::unique_ptr<lemo::v1::FileService::Stub> files_;
  std::unique_ptr<lemo::v1::ModelService::Stub> models_;
  std::unique_ptr<lemo::v1::ClusterService::Stub> cluster_;
};

// Asks again and again, for half a minute, until it holds.
bool Eventually(const std::function<bool()>& holds);

}  // namespace lemo::agent
