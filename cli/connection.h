// The way to a coordinator.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "grpcpp/grpcpp.h"
#include "lemo/v1/admin_service.grpc.pb.h"
#include "lemo/v1/cluster_service.grpc.pb.h"
#include "lemo/v1/file_service.grpc.pb.h"
#include "lemo/v1/job_service.grpc.pb.h"
#include "lemo/v1/model_service.grpc.pb.h"

namespace lemo::cli {

// A channel (which connects by itself, and again after a break) and the stubs over it.
class Connection {
 public:
  // `timeout` bounds every call that is not a stream. The link is not encrypted: the coordinator
  // listens on loopback.
  Connection(std::string address, absl::Duration timeout);

  using Rpc = std::function<grpc::Status(grpc::ClientContext*)>;

  // One unary call; `what` continues "cannot ..." in the error.
  absl::Status Call(std::string_view what, const Rpc& rpc) const;

  // The same for calls that may be repeated: while the service is away, tries again with back-off
  // for up to ten seconds, or the timeout if that is shorter. `on_retry` is called before the first
  // repetition.
  absl::Status CallRetrying(std::string_view what, const Rpc& rpc,
                            const std::function<void()>& on_retry) const;

  // Waits before another try, and lets the channel connect meanwhile: without a call under way
  // nobody else drives it. True, at once, when it has connected again.
  bool Pause(absl::Duration pause) const;

  const std::string& address() const { return address_; }
  absl::Duration timeout() const { return timeout_; }
  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }

  lemo::v1::JobService::Stub& jobs() const { return *jobs_; }
  lemo::v1::FileService::Stub& files() const { return *files_; }
  lemo::v1::ModelService::Stub& models() const { return *models_; }
  lemo::v1::ClusterService::Stub& cluster() const { return *cluster_; }
  lemo::v1::AdminService::Stub& admin() const { return *admin_; }

 private:
  grpc::Status Once(const Rpc& rpc) const;

  const std::string address_;
  const absl::Duration timeout_;
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<lemo::v1::JobService::Stub> jobs_;
  const std::unique_ptr<lemo::v1::FileService::Stub> files_;
  const std::unique_ptr<lemo::v1::ModelService::Stub> models_;
  const std::unique_ptr<lemo::v1::ClusterService::Stub> cluster_;
  const std::unique_ptr<lemo::v1::AdminService::Stub> admin_;
};

// Waits between attempts: 0.1 s, doubling up to 3 s, each cut by up to a half at random so that
// many clients do not come back together.
class Backoff {
 public:
  absl::Duration Next();
  void Reset() { next_ = kFirst; }

 private:
  static constexpr absl::Duration kFirst = absl::Milliseconds(100);
  absl::Duration next_ = kFirst;
};

}  // namespace lemo::cli
