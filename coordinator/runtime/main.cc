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
#include <optional>
#include <string>
#include <thread>

#include "CLI/CLI.hpp"
#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/listen_address.h"
#include "common/metrics_server.h"
#include "coordinator/api/admin_service.h"
#include "coordinator/api/call_metrics.h"
#include "coordinator/api/cluster_service.h"
#include "coordinator/api/file_service.h"
#include "coordinator/api/job_service.h"
#include "coordinator/api/model_service.h"
#include "coordinator/api/worker_service.h"
#include "coordinator/artifacts/artifacts.h"
#include "coordinator/runtime/backups.h"
#include "coordinator/runtime/cluster.h"
#include "coordinator/runtime/gang_secret.h"
#include "coordinator/runtime/janitor.h"
#include "coordinator/runtime/log_files.h"
#include "coordinator/runtime/metrics.h"
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
// And when the process goes, whatever is still open.
constexpr std::chrono::milliseconds kLeave{4500};
// Calls that are handled at a time; an agent's stream or an upload has one for itself.
constexpr int kThreads = 2048;

struct Options {
  std::string listen = "127.0.0.1:7410";
  std::string metrics_listen;
  std::string dir;
  std::string train;
  bool insecure = false;
  double lease_seconds = 10;
  int validators = 1;
  int keep_events = 30;  // days; 0: for ever
  int keep_logs = 30;
};

absl::Duration DaysOf(int days) {
  return days == 0 ? absl::InfiniteDuration() : absl::Hours(24 * days);
}

// Whether nobody on another machine can reach it.
bool IsLocal(const std::string& address) {
  if (absl::StartsWith(address, "unix:")) return true;
  const std::optional<ListenAddress> parsed = ParseListenAddress(address);
  return parsed && parsed->loopback;
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
  LocalServices(Validator* validator, LogFiles* logs, Janitor* janitor)
      : validator_(validator), logs_(logs), janitor_(janitor) {}
  void StartValidation(const JobRecord& record) override { validator_->Start(record); }
  void StopValidation(const std::string& job) override { validator_->Stop(job); }
  void AppendLog(const std::string& job, const lemo::v1::LogChunk& chunk) override {
    logs_->Append(job, chunk);
  }
  void DropContent(const std::vector<std::string>& sha256) override {
    janitor_->DropCheckpoints(sha256);
  }

 private:
  Validator* const validator_;
  LogFiles* const logs_;
  Janitor* const janitor_;
};

// Runs by which a plan's times are corrected, of one kind and altogether.
constexpr int kHistoryOfKind = 16, kHistoryMost = 1024;

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
  const auto checkpoints = OpenLocalArtifactStore((dir / "checkpoints").string());
  if (!checkpoints.ok()) return Fail(kUserFault, std::string(checkpoints.status().message()));

  WatchHub hub(store->get());
  LogFiles logs((dir / "logs").string());
  // The validator answers to the cluster, which starts validations while it recovers.
  std::promise<Cluster*> started;
  const std::shared_future<Cluster*> known = started.get_future().share();
  Metrics metrics;
  ValidatorOptions validator_options;
  validator_options.train_program = options.train;
  validator_options.scratch = (dir / "validation").string();
  validator_options.workers = options.validators;
  validator_options.rates_file = (dir / "rates.json").string();
  validator_options.add_times = [known](const JobRecord& record, lemo::v1::PlanResult* plan) {
    if (known.get() != nullptr) known.get()->AddTimes(record, plan);
  };
  validator_options.history = [store = store->get()] {
    // No plan fails for want of it.
    return store->RunTimes(kHistoryOfKind, kHistoryMost).value_or(std::vector<lemo::v1::RunTime>());
  };
  validator_options.devices = [known](const std::string& type) {
    return known.get() != nullptr ? known.get()->PlannedDevices(type) : lemo::v1::PlanOptions();
  };
  validator_options.count_offers = [&metrics](const char* outcome) { metrics.OnOffers(outcome); };
  Validator validator(
      validator_options, artifacts->get(),
      [store = store->get(), known](const std::string& job, Finding finding) {
        if (known.get() == nullptr) return;
        known.get()->Post(Validated{job, std::move(finding.verdict), LeastMemory(store, job),
                                    std::move(finding.contract)});
      });
  JanitorOptions keep;
  keep.keep_events = DaysOf(options.keep_events);
  keep.keep_logs = DaysOf(options.keep_logs);
  Janitor janitor(keep, store->get(), artifacts->get(), checkpoints->get(), &logs);
  const auto backups =
      Backups::Open(dir, store->get(), artifacts->get(), checkpoints->get(), &janitor);
  if (!backups.ok()) return Fail(kUserFault, std::string(backups.status().message()));
  LocalServices services(&validator, &logs, &janitor);
  CoreOptions core_options;
  core_options.lease = absl::Seconds(options.lease_seconds);
  core_options.heartbeat = core_options.lease / 5;
  core_options.fence_margin = core_options.lease / 2;
  core_options.recovery_grace = core_options.lease + core_options.fence_margin;
  const auto gang_secret = GangSecret(dir);
  if (!gang_secret.ok()) return Fail(kUserFault, std::string(gang_secret.status().message()));
  core_options.gang_secret = *gang_secret;
  const auto cluster = Cluster::Start(core_options, store->get(), &hub, &services, &metrics);
  started.set_value(cluster.ok() ? cluster->get() : nullptr);
  if (!cluster.ok()) return Fail(kOurFault, std::string(cluster.status().message()));
  // Whichever way this ends: it answers to the cluster.
  const absl::Cleanup stop_validator = [&validator] { validator.Shutdown(); };

  JobServiceImpl jobs(cluster->get(), store->get(), artifacts->get(), checkpoints->get(), &hub,
                      &validator, &logs, keep.keep_logs);
  FileServiceImpl files(store->get(), artifacts->get(), cluster->get(), &janitor);
  AdminServiceImpl admin(backups->get());
  ModelServiceImpl models(store->get());
  ClusterServiceImpl cluster_service(cluster->get());
  WorkerServiceImpl workers(cluster->get(), artifacts->get(), checkpoints->get());

  metrics.Show(cluster->get(), &hub, &validator, options.dir, LEMO_VERSION);
  const auto metrics_server =
      metrics::Server::Start(options.metrics_listen, metrics.registry(), dir / "metrics_address");
  if (!metrics_server.ok()) {
    return Fail(kUserFault, std::string(metrics_server.status().message()));
  }

  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  CountCalls(&metrics, &builder);
  builder.SetMaxReceiveMessageSize(kMessageLimit);
  // Two coordinators on one port would each have half of the calls.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 1000);
  // A watcher that vanished without a word is found out.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 20'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  grpc::ResourceQuota quota;
  quota.SetMaxThreads(kThreads);
  builder.SetResourceQuota(quota);
  int port = 0;
  builder.AddListeningPort(options.listen, grpc::InsecureServerCredentials(), &port);
  for (grpc::Service* service : std::initializer_list<grpc::Service*>{
           &jobs, &files, &models, &cluster_service, &workers, &admin}) {
    builder.RegisterService(service);
  }
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (!server || port == 0) return Fail(kUserFault, "--listen: cannot listen on " + options.listen);
  // Probes ask for one service, or for "", the whole server.
  for (const char* service :
       {lemo::v1::JobService::service_full_name(), lemo::v1::FileService::service_full_name(),
        lemo::v1::ModelService::service_full_name(), lemo::v1::ClusterService::service_full_name(),
        lemo::v1::WorkerService::service_full_name(),
        lemo::v1::AdminService::service_full_name()}) {
    server->GetHealthCheckService()->SetServingStatus(service, true);
  }
  const std::string address =
      absl::StrCat(options.listen.substr(0, options.listen.rfind(':')), ":", port);
  if (absl::Status written = WriteFileAtomic(dir / "address", address + "\n"); !written.ok()) {
    return Fail(kUserFault, std::string(written.message()));
  }
  std::cout << "listening on " << address << std::endl;
  if (*metrics_server) {
    std::cout << "metrics on http://" << (*metrics_server)->address() << "/metrics" << std::endl;
  }

  int signal = 0;
  sigwait(&signals, &signal);
  std::cerr << "lemo-coordinator: signal " << signal << ", stopping; running jobs go on\n";
  server->GetHealthCheckService()->SetServingStatus(false);
  // All that was acknowledged is durable, so nothing is lost when a call that hangs is left behind.
  std::promise<void> ended;
  std::thread leave([ended = ended.get_future()] {
    if (ended.wait_for(kLeave) == std::future_status::timeout) ::_exit(0);
  });
  validator.Shutdown();  // checks begin again at the next start
  // Requests under way still get their answers; then streams are cut.
  server->Shutdown(std::chrono::system_clock::now() + kShutdown);
  server->Wait();
  (*cluster)->Stop();
  ended.set_value();
  leave.join();
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
  app.add_option("--metrics-listen", options.metrics_listen,
                 "HOST:PORT where /metrics is served for Prometheus; port 0 takes a free one, "
                 "written to DIR/metrics_address (default: nowhere)");
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
  app.add_option("--keep-events", options.keep_events,
                 "DAYS after a job's end when its events are dropped; 0: never")
      ->capture_default_str()
      ->check(CLI::Range(0, 36500));
  app.add_option("--keep-logs", options.keep_logs,
                 "DAYS after a job's end when its logs are dropped; 0: never")
      ->capture_default_str()
      ->check(CLI::Range(0, 36500));
  app.add_flag(
      "--insecure-listen", options.insecure,
      "Listen beyond this machine although nothing is encrypted and nobody is asked who he is");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kUserFault;
  }
  if (!IsLocal(options.listen) && !options.insecure) {
    return Fail(kUserFault,
                "--listen: " + options.listen +
                    " is not a loopback address, and connections are not encrypted; if the "
                    "network is trusted, say --insecure-listen");
  }
  if (const absl::Status valid = metrics::CheckListen(options.metrics_listen, options.insecure);
      !valid.ok()) {
    return Fail(kUserFault, std::string(valid.message()));
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
