#include "cli/connection.h"

#include <algorithm>
#include <utility>

#include "absl/random/random.h"
#include "absl/time/clock.h"
#include "cli/errors.h"

namespace lemo::cli {
namespace {

constexpr absl::Duration kRetryFor = absl::Seconds(10);
constexpr absl::Duration kLongestPause = absl::Seconds(3);

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address) {
  grpc::ChannelArguments arguments;
  // A coordinator that restarts is away for moments, not for gRPC's usual minutes.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000);
  // A page of jobs with their specs outgrows gRPC's usual 4 MiB.
  arguments.SetMaxReceiveMessageSize(64 << 20);
  // A proxy for the web has no business with a coordinator.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

}  // namespace

Connection::Connection(std::string address, absl::Duration timeout)
    : address_(std::move(address)),
      timeout_(timeout),
      channel_(MakeChannel(address_)),
      jobs_(lemo::v1::JobService::NewStub(channel_)),
      files_(lemo::v1::FileService::NewStub(channel_)),
      models_(lemo::v1::ModelService::NewStub(channel_)),
      cluster_(lemo::v1::ClusterService::NewStub(channel_)),
      admin_(lemo::v1::AdminService::NewStub(channel_)) {}

grpc::Status Connection::Once(const Rpc& rpc) const {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + timeout_));
  return rpc(&context);
}

absl::Status Connection::Call(std::string_view what, const Rpc& rpc) const {
  return RpcError(what, address_, Once(rpc));
}

absl::Status Connection::CallRetrying(std::string_view what, const Rpc& rpc,
                                      const std::function<void()>& on_retry) const {
  const absl::Time end = absl::Now() + std::min(kRetryFor, timeout_);
  Backoff backoff;
  bool told = false;
  for (;;) {
    const grpc::Status status = Once(rpc);
    if (status.error_code() != grpc::StatusCode::UNAVAILABLE) {
      return RpcError(what, address_, status);
    }
    const absl::Duration pause = backoff.Next();
    if (absl::Now() + pause > end) return RpcError(what, address_, status);
    if (!std::exchange(told, true)) on_retry();
    Pause(pause);
  }
}

bool Connection::Pause(absl::Duration pause) const {
  if (channel_->GetState(/*try_to_connect=*/false) != GRPC_CHANNEL_READY) {
    return channel_->WaitForConnected(absl::ToChronoTime(absl::Now() + pause));
  }
  absl::SleepFor(pause);
  return false;
}

absl::Duration Backoff::Next() {
  absl::BitGen random;
  const absl::Duration pause = next_ * absl::Uniform(random, 0.5, 1.0);
  next_ = std::min(next_ * 2, kLongestPause);
  return pause;
}

}  // namespace lemo::cli
