#include "worker/agent/gang_peers.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "lemo/v1/node_service.grpc.pb.h"
#include "nlohmann/json.hpp"
#include "worker/agent/gang_command.h"

namespace lemo::agent {
namespace {

using lemo::v1::NodeService;

constexpr auto kCallTimeout = std::chrono::seconds(15);  // a peer answers after five
constexpr auto kPatience = std::chrono::seconds(30);
constexpr BootClock::duration kPauseLeast = std::chrono::milliseconds(20);
constexpr BootClock::duration kPauseMost = std::chrono::seconds(1);
constexpr auto kEndTimeout = std::chrono::seconds(4);

absl::Status AwaitPeer(const Peer& peer, const lemo::v1::GangKey& key, Canceller* canceller) {
  const auto stub = NodeService::NewStub(Dial(peer.address));
  lemo::v1::AwaitReadyRequest request;
  *request.mutable_key() = key;
  BootClock::duration pause = kPauseLeast;
  for (Instant heard = BootClock::now();;) {
    lemo::v1::AwaitReadyResponse response;
    grpc::Status status;
    {
      CancellableContext context(canceller, kCallTimeout);
      status = stub->AwaitReady(context.get(), request, &response);
    }
    if (canceller->cancelled()) return absl::CancelledError("the attempt was ended");
    if (status.ok()) {
      if (response.ready()) return absl::OkStatus();
      heard = BootClock::now();
      continue;
    }
    // Its assignment may be on its way.
    const bool again = status.error_code() == grpc::StatusCode::NOT_FOUND ||
                       (IsTransient(status) && status.error_code() != grpc::StatusCode::ABORTED);
    if (!again || BootClock::now() - heard > kPatience) {
      return absl::UnavailableError(
          absl::StrCat(peer.worker, " at ", peer.address,
                       " does not take its part of the ranks: ", status.error_message()));
    }
    if (!canceller->Sleep(pause)) return absl::CancelledError("the attempt was ended");
    pause = std::min(pause * 2, kPauseMost);
  }
}

}  // namespace

absl::StatusOr<GangFile> GangFile::Of(const lemo::v1::Assignment& assignment) {
  GangFile gang;
  *gang.key.mutable_id() = assignment.id();
  gang.key.set_token(assignment.gang_token());
  for (int node = 1; node < assignment.nodes_size(); ++node) {
    const lemo::v1::AssignedNode& assigned = assignment.nodes(node);
    if (assigned.endpoint().address().empty()) {
      return absl::FailedPreconditionError(
          absl::StrCat("no address of ", assigned.worker(), " is known"));
    }
    gang.peers.push_back(
        {HostOf(static_cast<size_t>(node)), assigned.worker(), assigned.endpoint().address()});
  }
  return gang;
}

absl::Status GangFile::Write(const std::filesystem::path& path) const {
  nlohmann::json nodes = nlohmann::json::array();
  for (const Peer& peer : peers) {
    nodes.push_back({{"host", peer.host}, {"worker", peer.worker}, {"address", peer.address}});
  }
  const std::string text = nlohmann::json{
      {"job", key.id().job()},
      {"attempt", key.id().attempt()},
      {"token", key.token()},
      {"peers", nodes}}.dump();
  ::unlink(path.c_str());
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd < 0) return ErrnoStatus(errno, "create", path);
  const absl::Cleanup close = [fd] { ::close(fd); };
  if (::write(fd, text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
    return ErrnoStatus(errno, "write", path);
  }
  return absl::OkStatus();
}

absl::StatusOr<GangFile> GangFile::Read(const std::filesystem::path& path) {
  const absl::StatusOr<std::string> text = ReadFile(path, 16 << 20);
  if (!text.ok()) return text.status();
  const nlohmann::json json = nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
  GangFile gang;
  try {
    gang.key.mutable_id()->set_job(json.at("job").get<std::string>());
    gang.key.mutable_id()->set_attempt(json.at("attempt").get<int>());
    gang.key.set_token(json.at("token").get<std::string>());
    for (const nlohmann::json& peer : json.at("peers")) {
      gang.peers.push_back({peer.at("host"), peer.at("worker"), peer.at("address")});
    }
  } catch (const nlohmann::json::exception& error) {
    return absl::DataLossError(absl::StrCat(path.string(), ": ", error.what()));
  }
  return gang;
}

absl::Status AwaitReady(const GangFile& gang, Canceller* canceller) {
  // All prepare at the same time; who is waited for first does not matter.
  for (const Peer& peer : gang.peers) {
    if (absl::Status status = AwaitPeer(peer, gang.key, canceller); !status.ok()) return status;
  }
  return absl::OkStatus();
}

std::map<int, RemoteEnd> EndRanks(const GangFile& gang) {
  std::mutex mutex;
  std::map<int, RemoteEnd> ends;
  std::vector<std::thread> threads;
  for (const Peer& peer : gang.peers) {
    threads.emplace_back([&] {
      lemo::v1::EndRanksRequest request;
      *request.mutable_key() = gang.key;
      lemo::v1::EndRanksResponse response;
      grpc::ClientContext context;
      context.set_deadline(std::chrono::system_clock::now() + kEndTimeout);
      const auto stub = NodeService::NewStub(Dial(peer.address));
      if (!stub->EndRanks(&context, request, &response).ok()) return;
      const std::chrono::nanoseconds now = BootClock::now().time_since_epoch();
      const std::lock_guard<std::mutex> lock(mutex);
      for (const lemo::v1::RankEnded& ended : response.ranks()) {
        RemoteEnd& end = ends[ended.rank()];
        end.end.status = ended.status();
        end.end.for_others = ended.for_others();
        end.end.boot_ns = now.count() - static_cast<int64_t>(ended.seconds_ago() * 1e9);
        end.log_tail = ended.log_tail();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return ends;
}

}  // namespace lemo::agent
