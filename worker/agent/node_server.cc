#include "worker/agent/node_server.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "lemo/v1/node_service.grpc.pb.h"
#include "worker/agent/uplink.h"

namespace lemo::agent {
namespace {

using lemo::v1::DaemonInput;
using lemo::v1::DaemonOutput;
using DaemonStream = grpc::ServerReaderWriter<DaemonOutput, DaemonInput>;

constexpr auto kReadyWait = std::chrono::seconds(5);
constexpr auto kStartWait = std::chrono::seconds(10);
constexpr auto kEndWait = std::chrono::seconds(3);
// A gang has one call here while it runs, and short ones.
constexpr int kThreads = 512;
// Of the daemon's output in one message: what fits the connection's window while the lead, which
// may be no more, acknowledges nothing.
constexpr size_t kOutputBytes = 4 << 10;

grpc::Status ToGrpc(const absl::Status& status) {
  return {static_cast<grpc::StatusCode>(status.code()), std::string(status.message())};
}

int ExitCode(int status) {
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

// The daemon's output as it grows.
class Output {
 public:
  explicit Output(const std::filesystem::path& path)
      : fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {}
  ~Output() {
    if (fd_ >= 0) ::close(fd_);
  }
  Output(const Output&) = delete;
  Output& operator=(const Output&) = delete;

  std::string Next() {
    std::string bytes(kOutputBytes, '\0');
    const ssize_t got = fd_ < 0 ? 0 : ::read(fd_, bytes.data(), bytes.size());
    bytes.resize(static_cast<size_t>(std::max<ssize_t>(got, 0)));
    return bytes;
  }

 private:
  const int fd_;
};

// Reads what the lead says, which after the first message is nothing but that it is there.
class Listener {
 public:
  Listener(grpc::ServerContext* context, DaemonStream* stream)
      : context_(context), thread_([this, stream] {
          for (DaemonInput input; stream->Read(&input);) heard_ = BootClock::now();
          ended_ = true;
        }) {}
  ~Listener() {
    if (!ended_) context_->TryCancel();
    thread_.join();
  }
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;

  bool gone() const { return ended_ || BootClock::now() - heard_.load() > kSilence; }
  // Until the lead has read all and ended its side; a call that is cut before loses what was
  // written last.
  void AwaitEnd() const {
    while (!gone()) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }

 private:
  grpc::ServerContext* const context_;
  std::atomic<Instant> heard_{BootClock::now()};
  std::atomic<bool> ended_{false};
  std::thread thread_;
};

}  // namespace

class NodeServer::Service final : public lemo::v1::NodeService::Service {
 public:
  explicit Service(GangParts* parts) : parts_(parts) {}

  grpc::Status AwaitReady(grpc::ServerContext*, const lemo::v1::AwaitReadyRequest* request,
                          lemo::v1::AwaitReadyResponse* response) override {
    const auto part = parts_->Find(request->key());
    if (!part.ok()) return ToGrpc(part.status());
    const absl::StatusOr<bool> ready = (*part)->AwaitReady(kReadyWait);
    if (!ready.ok()) return ToGrpc(ready.status());
    response->set_ready(*ready);
    return grpc::Status::OK;
  }

  grpc::Status RunDaemon(grpc::ServerContext* context, DaemonStream* stream) override {
    DaemonInput first;
    if (!stream->Read(&first) || !first.has_start()) {
      return {grpc::StatusCode::INVALID_ARGUMENT, "the first message has no start"};
    }
    const auto found = parts_->Find(first.start().key());
    if (!found.ok()) return ToGrpc(found.status());
    GangPart& part = **found;
    const absl::Status started = part.StartDaemon(
        {first.start().arguments().begin(), first.start().arguments().end()}, kStartWait);
    if (!started.ok()) return ToGrpc(started);
    // Whichever way this ends: without the call there is no daemon.
    const absl::Cleanup end = [&part] { part.EndRanks(); };
    return Watch(context, stream, &part);
  }

  grpc::Status EndRanks(grpc::ServerContext*, const lemo::v1::EndRanksRequest* request,
                        lemo::v1::EndRanksResponse* response) override {
    const auto part = parts_->Find(request->key());
    if (!part.ok()) return ToGrpc(part.status());
    (*part)->EndRanks();
    if (!(*part)->AwaitDaemon(kEndWait)) {
      return {grpc::StatusCode::DEADLINE_EXCEEDED, "the ranks do not end when killed"};
    }
    *response = (*part)->RankEnds();
    return grpc::Status::OK;
  }

 private:
  static grpc::Status Watch(grpc::ServerContext* context, DaemonStream* stream, GangPart* part) {
    Output output(part->daemon_log());
    const Listener lead(context, stream);
    DaemonOutput message;
    std::optional<int> status;
    do {
      message.set_output(output.Next());
      if (!stream->Write(message) || lead.gone()) {
        return {grpc::StatusCode::ABORTED, "nothing is heard of the lead"};
      }
      status = part->AwaitDaemon(message.output().size() == kOutputBytes ? BootClock::duration{}
                                                                         : kBeat);
    } while (!status);
    message.set_output(output.Next());
    message.mutable_ended()->set_exit_code(ExitCode(*status));
    if (stream->Write(message)) lead.AwaitEnd();
    return grpc::Status::OK;
  }

  GangParts* const parts_;
};

NodeServer::NodeServer(GangParts* parts)
    : parts_(parts), service_(std::make_unique<Service>(parts)) {}

absl::StatusOr<std::unique_ptr<NodeServer>> NodeServer::Start(const std::string& listen,
                                                              GangParts* parts) {
  std::unique_ptr<NodeServer> node(new NodeServer(parts));
  grpc::ServerBuilder builder;
  // Two agents on one port would each have half of the calls.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  grpc::ResourceQuota quota;
  quota.SetMaxThreads(kThreads);
  builder.SetResourceQuota(quota);
  builder.AddListeningPort(listen, ListenCredentials(), &node->port_);
  builder.RegisterService(node->service_.get());
  node->server_ = builder.BuildAndStart();
  if (node->server_ == nullptr || node->port_ == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--listen: cannot listen on ", listen,
                     "; it is taken, or no address of this machine; port 0 takes a free one"));
  }
  return node;
}

NodeServer::~NodeServer() {
  if (server_ == nullptr) return;
  parts_->CloseAll();
  server_->Shutdown(std::chrono::system_clock::now());
  server_->Wait();
}

}  // namespace lemo::agent
