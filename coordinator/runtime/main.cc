// lemo-coordinator: the control plane in one process.
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <future>
#include <iostream>
#include <memory>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "coordinator/api/cluster_service.h"
#include "coordinator/api/file_service.h"
#include "coordinator/api/job_service.h"
#include "coordinator/api/model_service.h"
#include "coordinator/api/worker_service.h"
#include "coordinator/artifacts/artifacts.h"
#include "coordinator/runtime/cluster.h"
#include "coordinator/runtime/log_files.h"
#include "coordinator/runtime/validator.h"
#include "coordinator/runtime/watch_hub.h"
#include "coordinator/store/store.h"

namespace lemo::coordinator {
namespace {

namespace fs = std::filesystem;

constexpr int kUserFault = 2, kOurFault = 4;
// Longer messages are refused before they are read whole. An upload's chunks have 1 MiB.
constexpr int kMessageLimit = 4 << 20;
// How long open calls may take to end after a signal; watches and agents are cut off.
constexpr std::chrono::seconds kShutdown{3};

struct Options {
  std::string listen = "127.0.0.1:7410";
  std::string dir;
  std::string train;
  bool insecure = false;
  double lease_seconds = 10;
  int validators = 1;
};

bool IsLoopback(const std::string& address) {
  return absl::StartsWith(address, "127.") || absl::StartsWith(address, "localhost:") ||
         absl::StartsWith(address, "[::1]:") || absl::StartsWith(address, "unix:");
}

std::string DefaultTrain() {
  std::error_code ignored;
  const fs::path here = fs::read_symlink("/proc/self/exe", ignored).parent_path();
  for (const fs::path& path : {here / "lemo-train", here / "../../worker/train/lemo-train"}) {
    if (::access(path.c_str(), X_OK) == 0) return path.lexically_normal().string();
  }
  return "";
}

// What the cluster sets going, in the process's own parts.
class LocalServices final : public Services {
 public:
  LocalServices(Validator* validator, LogFiles* logs) : validator_(validator), logs_(logs) {}
  void StartValidation(const JobRecord& record) override { validator_->Start(record); }
  void StopValidation(const std::string& job) override { validator_->Stop(job); }
  void AppendLog(const std::string& job, const lemo::v1::LogChunk& chunk) override {
    logs_->Append(job, chunk);
  }

 private:
  Validator* const validator_;
  LogFiles* const logs_;
};

// A rank holds its model's weights at least.
int64_t LeastMemory(Store* store, const std::string& job) {
  const auto found = store->GetJob(job);
  if (!found.ok()) return 0;
  const auto model = store->GetModel(found->spec().run().model().path());
  return model.ok() ? model->bytes() : 0;
}

int Fail(int code, const std::string& message) {
  std::cerr << "lemo-coordinator: " << message << "\n";
  return code;
}

int Serve(const Options& options, const sigset_t& signals) {
  const fs::path dir = options.dir;
  if (absl::Status made = MakeDirectories(dir); !made.ok()) {
    return Fail(kUserFault, "--dir: " + std::string(made.message()));
  }
  const auto store = OpenSqliteStore((dir / "lemo.db").string());
  if (!store.ok()) return Fail(kUserFault, std::string(store.status().message()));
  const auto artifacts = OpenLocalArtifactStore((dir / "artifacts").string());
  if (!artifacts.ok()) return Fail(kUserFault, std::string(artifacts.status().message()));

  WatchHub hub(store->get());
  LogFiles logs((dir / "logs").string());
  // The validator answers to the cluster, which starts validations while it recovers.
  std::promise<Cluster*> started;
  Validator validator(
      {options.train, (dir / "validation").string(), options.validators}, artifacts->get(),
      [store = store->get(), cluster = started.get_future().share()](const std::string& job,
                                                                     Verdict verdict) {
        if (cluster.get() == nullptr) return;
        cluster.get()->Post(Validated{job, std::move(verdict), LeastMemory(store, job)});
      });
  LocalServices services(&validator, &logs);
  CoreOptions core_options;
  core_options.lease = absl::Seconds(options.lease_seconds);
  core_options.heartbeat = core_options.lease / 5;
  core_options.fence_margin = core_options.lease / 2;
  core_options.recovery_grace = core_options.lease + core_options.fence_margin;
  const auto cluster = Cluster::Start(core_options, store->get(), &hub, &services);
  started.set_value(cluster.ok() ? cluster->get() : nullptr);
  if (!cluster.ok()) return Fail(kOurFault, std::string(cluster.status().message()));

  JobServiceImpl jobs(cluster->get(), store->get(), artifacts->get(), &hub, &validator, &logs);
  FileServiceImpl files(store->get(), artifacts->get(), cluster->get());
  ModelServiceImpl models(store->get());
  ClusterServiceImpl cluster_service(cluster->get());
  WorkerServiceImpl workers(cluster->get(), artifacts->get());

  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  builder.SetMaxReceiveMessageSize(kMessageLimit);
  // Two coordinators on one port would each have half of the calls.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 1000);
  int port = 0;
  builder.AddListeningPort(options.listen, grpc::InsecureServerCredentials(), &port);
  for (grpc::Service* service :
       std::initializer_list<grpc::Service*>{&jobs, &files, &models, &cluster_service, &workers}) {
    builder.RegisterService(service);
  }
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (!server || port == 0) return Fail(kUserFault, "--listen: cannot listen on " + options.listen);
  const std::string address =
      absl::StrCat(options.listen.substr(0, options.listen.rfind(':')), ":", port);
  if (absl::Status written = WriteFileAtomic(dir / "address", address + "\n"); !written.ok()) {
    return Fail(kUserFault, std::string(written.message()));
  }
  std::cout << "listening on " << address << std::endl;

  int signal = 0;
  sigwait(&signals, &signal);
  std::cerr << "lemo-coordinator: signal " << signal << ", stopping; running jobs go on\n";
  server->GetHealthCheckService()->SetServingStatus(false);
  // Requests under way still get their answers; then streams are cut.
  server->Shutdown(std::chrono::system_clock::now() + kShutdown);
  server->Wait();
  (*cluster)->Stop();
  return 0;
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("The coordinator of LeMo: takes jobs, keeps them, and has workers run them.",
               "lemo-coordinator");
  app.add_option("--dir", options.dir, "Where jobs, files and results are kept")->required();
  app.add_option("--listen", options.listen,
                 "HOST:PORT; port 0 takes a free one, written to DIR/address")
      ->capture_default_str();
  app.add_option(
      "--train", options.train,
      "lemo-train, which checks jobs before they are accepted (default: beside this program)");
  app.add_option("--lease-seconds", options.lease_seconds,
                 "How long a worker may be silent before its jobs are placed anew")
      ->capture_default_str()
      ->check(CLI::Range(0.5, 3600.0));
  app.add_option("--validators", options.validators, "Jobs that are checked at a time")
      ->capture_default_str()
      ->check(CLI::Range(1, 64));
  app.add_flag(
      "--insecure-listen", options.insecure,
      "Listen beyond this machine although nothing is encrypted and nobody is asked who he is");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kUserFault;
  }
  if (!IsLoopback(options.listen) && !options.insecure) {
    return Fail(kUserFault,
                "--listen: " + options.listen +
                    " is not a loopback address, and connections are not encrypted; if the "
                    "network is trusted, say --insecure-listen");
  }
  if (options.train.empty()) options.train = DefaultTrain();
  if (options.train.empty() || ::access(options.train.c_str(), X_OK) != 0) {
    return Fail(kUserFault,
                "--train: no lemo-train found; it checks jobs before they are accepted");
  }
  // Blocked before any thread starts, so that only sigwait takes them.
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGINT, SIGTERM}) sigaddset(&signals, signal);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
  ::signal(SIGXFSZ, SIG_IGN);  // a file that is too large is an error to handle, as a full disk
  return Serve(options, signals);
}

}  // namespace
}  // namespace lemo::coordinator

int main(int argc, char** argv) { return lemo::coordinator::Main(argc, argv); }
