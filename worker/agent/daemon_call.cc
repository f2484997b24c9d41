#include "worker/agent/daemon_call.h"

#include <grpcpp/grpcpp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <iostream>
#include <mutex>
#include <optional>
#include <thread>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/files.h"
#include "lemo/v1/node_service.grpc.pb.h"
#include "worker/agent/gang_peers.h"
#include "worker/agent/node_server.h"
#include "worker/agent/uplink.h"

namespace lemo::agent {
namespace {

constexpr int kFault = 255;
constexpr auto kStartPatience = std::chrono::seconds(15);

int Fail(const std::string& message) {
  std::cerr << "lemo-worker exec: " << message << std::endl;
  return kFault;
}

// One call of RunDaemon. A thread reads; the caller of Run says every beat that it is there.
class DaemonCall {
 public:
  DaemonCall(const Peer& peer, const lemo::v1::GangKey& key, std::vector<std::string> arguments)
      : stub_(lemo::v1::NodeService::NewStub(Dial(peer.address))) {
    lemo::v1::DaemonStart& start = *first_.mutable_start();
    *start.mutable_key() = key;
    for (std::string& argument : arguments) start.add_arguments(std::move(argument));
  }

  // The daemon's exit code, or why the call ended without one.
  absl::StatusOr<int> Run() {
    stream_ = stub_->RunDaemon(&context_);
    std::thread reader([this] { Read(); });
    bool open = stream_->Write(first_);
    const lemo::v1::DaemonInput beat;
    std::unique_lock<std::mutex> lock(mutex_);
    bool silent = false;
    while (!ended_ && !silent) {
      changed_.wait_for(lock, kBeat, [this] { return ended_; });
      silent = BootClock::now() - heard_ > (started_ ? kSilence : kStartPatience);
      if (ended_ || silent || !open) continue;
      lock.unlock();
      open = stream_->Write(beat);
      lock.lock();
    }
    lock.unlock();
    if (silent && !exit_code_) context_.TryCancel();
    reader.join();
    stream_->WritesDone();
    if (exit_code_) return *exit_code_;
    if (silent) return absl::UnavailableError("nothing was heard of it for seconds");
    const grpc::Status status = stream_->Finish();
    return absl::Status(static_cast<absl::StatusCode>(status.ok() ? grpc::StatusCode::ABORTED
                                                                  : status.error_code()),
                        status.ok() ? "it ended the call" : status.error_message());
  }

 private:
  void Read() {
    for (lemo::v1::DaemonOutput output; stream_->Read(&output);) {
      std::cerr << output.output() << std::flush;
      const std::lock_guard<std::mutex> lock(mutex_);
      heard_ = BootClock::now();
      started_ = true;
      if (!output.has_ended()) continue;
      exit_code_ = output.ended().exit_code();
      break;
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    ended_ = true;
    changed_.notify_all();
  }

  const std::unique_ptr<lemo::v1::NodeService::Stub> stub_;
  lemo::v1::DaemonInput first_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<lemo::v1::DaemonInput, lemo::v1::DaemonOutput>> stream_;

  std::mutex mutex_;
  std::condition_variable changed_;
  Instant heard_ = BootClock::now();
  bool started_ = false;
  bool ended_ = false;
  std::optional<int> exit_code_;
};

}  // namespace

std::filesystem::path LostNote(const std::filesystem::path& gang_file, const std::string& host) {
  return absl::StrCat(gang_file.string(), ".", host, ".lost");
}

std::vector<std::string> DaemonArguments(const std::vector<std::string>& words) {
  std::vector<std::string> arguments;
  bool found = false;
  for (const std::string& word : words) {
    // One word may be several for a shell: ` PATH=... ; export PATH ; /usr/bin/orted`.
    const std::vector<std::string> parts = absl::StrSplit(word, ' ', absl::SkipWhitespace());
    if (!found) {
      found = !parts.empty() && std::filesystem::path(parts.back()).filename() == "orted";
      continue;
    }
    const bool quoted = word.size() >= 2 && word.front() == '"' && word.back() == '"';
    arguments.push_back(quoted ? word.substr(1, word.size() - 2) : word);
  }
  return arguments;
}

int RunDaemonCall(const std::vector<std::string>& args) {
  const pid_t parent = ::getppid();
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) return kFault;
  ::signal(SIGPIPE, SIG_IGN);
  const char* path = ::getenv("LEMO_GANG_FILE");
  if (args.size() < 2 || path == nullptr) {
    return Fail("expected HOST COMMAND... and LEMO_GANG_FILE; this is called by mpirun");
  }
  const absl::StatusOr<GangFile> gang = GangFile::Read(path);
  if (!gang.ok()) return Fail(std::string(gang.status().message()));
  const auto peer = std::find_if(gang->peers.begin(), gang->peers.end(),
                                 [&](const Peer& known) { return known.host == args[0]; });
  if (peer == gang->peers.end()) return Fail(absl::StrCat(args[0], " is no node of this gang"));
  std::vector<std::string> arguments = DaemonArguments({args.begin() + 1, args.end()});
  if (arguments.empty()) return Fail("there is no orted in what mpirun wants to be run");
  const absl::StatusOr<int> code = DaemonCall(*peer, gang->key, std::move(arguments)).Run();
  // A daemon leaves with a code when mpirun tells it to; nothing but force ends it by a signal.
  std::string lost;
  if (!code.ok()) {
    lost = absl::StrCat(peer->worker, " at ", peer->address,
                        " was lost: ", std::string(code.status().message()));
  } else if (*code > 128) {
    lost =
        absl::StrCat("Open MPI's daemon on ", peer->worker, " was ended by signal ", *code - 128);
  }
  if (lost.empty()) return *code;
  const absl::Status noted = WriteFileAtomic(LostNote(path, peer->host), lost);
  if (!noted.ok()) std::cerr << noted.message() << std::endl;
  return Fail(lost);
}

}  // namespace lemo::agent
