// NodeService: what other agents ask of this one.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "worker/agent/clock.h"
#include "worker/agent/gang_part.h"

namespace lemo::agent {

// Both ends of RunDaemon say something every kBeat, and give the call up when they have heard
// nothing for kSilence: a peer that was cut off, stopped or is gone.
inline constexpr BootClock::duration kBeat = std::chrono::seconds(1);
inline constexpr BootClock::duration kSilence = std::chrono::seconds(4);

class NodeServer {
 public:
  // `parts` outlives it. InvalidArgument when `listen` cannot be had.
  static absl::StatusOr<std::unique_ptr<NodeServer>> Start(const std::string& listen,
                                                           GangParts* parts);
  // Closes all parts and ends all calls.
  ~NodeServer();
  NodeServer(const NodeServer&) = delete;
  NodeServer& operator=(const NodeServer&) = delete;

  int port() const { return port_; }

 private:
  class Service;

  explicit NodeServer(GangParts* parts);

  GangParts* const parts_;
  const std::unique_ptr<Service> service_;
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;
};

}  // namespace lemo::agent
