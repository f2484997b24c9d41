// A coordinator that a test holds in its hands: it keeps what the protocol says a coordinator
// keeps, and answers or keeps silent as the test wants.
#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "lemo/v1/file_service.grpc.pb.h"
#include "lemo/v1/job_service.grpc.pb.h"
#include "lemo/v1/model_service.grpc.pb.h"
#include "lemo/v1/worker_service.grpc.pb.h"

namespace lemo::agent {

// What is known of one attempt. `current` says whether the coordinator still wants it.
struct KnownAttempt {
  bool current = true;
  int started = 0;                         // messages
  std::vector<lemo::v1::RunEvent> events;  // stored: each once, in order
  std::vector<std::string> faults;         // against the protocol
  std::optional<lemo::v1::AttemptEnded> ended;
  std::map<int, std::string> logs;             // of the ranks
  std::map<std::string, std::string> uploads;  // path -> bytes
};

// Everything public is thread-safe.
class FakeCoordinator {
 public:
  using Key = std::pair<std::string, int>;  // job, attempt

  FakeCoordinator();
  ~FakeCoordinator();
  FakeCoordinator(const FakeCoordinator&) = delete;
  FakeCoordinator& operator=(const FakeCoordinator&) = delete;

  const std::string& address() const { return address_; }

  // --- Behaviour. ---
  struct Manners {
    double lease_seconds = 20;
    double heartbeat_seconds = 0.05;
    bool welcome = true;        // answers a hello
    bool renew = true;          // answers heartbeats
    bool store = true;          // stores and acknowledges events
    bool forget = true;         // answers the end of an attempt
    int refused_uploads = 0;    // so many calls fail as UNAVAILABLE
    int cut_downloads = 0;      // so many calls break off half way
    bool stall_models = false;  // their downloads never end
  };
  void Set(const std::function<void(Manners*)>& change);
  // Ends the server, and later starts it again at the same address.
  void GoAway();
  void ComeBack();
  // Cuts the stream of the agent.
  void Cut();

  // --- Jobs and files. ---
  // Promises a file's checksum; `bytes` are what is sent.
  lemo::v1::InputFile AddFile(const std::string& name, const std::string& bytes);
  void ReplaceFile(const std::string& name, const std::string& bytes);
  // Promises a file of a model, which is downloaded by name and path.
  lemo::v1::ModelFile AddModelFile(const std::string& model, const std::string& path,
                                   const std::string& bytes);
  void SetJobState(const std::string& job, lemo::v1::Job::State state);
  void Assign(const lemo::v1::Assignment& assignment);
  void Signal(const lemo::v1::AttemptId& id, lemo::v1::AttemptSignal::Signal signal);
  void SetBudget(const lemo::v1::AttemptId& id, int64_t bytes);
  void SetNotCurrent(const Key& key);

  // --- What was seen. ---
  // Waits until `holds` of the attempt, half a minute at most; fails the test otherwise.
  bool WaitFor(const Key& key, const std::function<bool(const KnownAttempt&)>& holds);
  bool WaitForSteps(const Key& key, int steps);
  bool WaitForEnd(const Key& key);
  // Waits for so many hellos in all, and answers the last.
  lemo::v1::Hello WaitForHello(int count);
  bool WaitForDrain();
  // Until no agent is connected: what is assigned before that may go to one that is gone.
  bool WaitForLoss();
  bool WaitForDownloads(int calls);
  int hellos() const;
  int download_calls() const;
  KnownAttempt Get(const Key& key) const;

 private:
  struct Services;
  friend struct Services;
  using Stream = grpc::ServerReaderWriter<lemo::v1::CoordinatorMessage, lemo::v1::AgentMessage>;

  grpc::Status Serve(grpc::ServerContext* context, Stream* stream);
  void Answer(const lemo::v1::AgentMessage& message, Stream* stream);
  void Listen(const std::string& address);
  bool Wait(std::unique_lock<std::mutex>& lock, const std::function<bool()>& holds);

  std::unique_ptr<Services> services_;
  std::unique_ptr<grpc::Server> server_;
  std::string address_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  Manners manners_;
  std::map<std::string, std::string> files_;
  std::map<std::string, lemo::v1::Job::State> states_;
  std::map<Key, KnownAttempt> attempts_;
  std::vector<lemo::v1::Assignment> unsent_;
  std::vector<lemo::v1::Hello> hellos_;
  int download_calls_ = 0;
  bool drained_ = false;
  Stream* stream_ = nullptr;  // of the agent that is connected
  grpc::ServerContext* context_ = nullptr;
};

}  // namespace lemo::agent
