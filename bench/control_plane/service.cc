#include "bench/control_plane/service.h"

#include <random>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/health.h"
#include "common/files.h"
#include "common/status_macros.h"

namespace lemo::bench {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(30);
constexpr absl::Duration kPoll = absl::Milliseconds(2);
constexpr char kModelId[] = "bench";

}  // namespace

absl::Status FromGrpc(const grpc::Status& status, const std::string& what) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                      status.ok() ? "" : absl::StrCat(what, ": ", status.error_message()));
}

std::shared_ptr<grpc::Channel> Dial(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

Service::Service(const Settings& settings, std::unique_ptr<Process> process, std::string address)
    : settings_(settings),
      process_(std::move(process)),
      address_(std::move(address)),
      channel_(Dial(address_)),
      jobs_(lemo::v1::JobService::NewStub(channel_)) {}

absl::StatusOr<std::unique_ptr<Service>> Service::Start(const Settings& settings,
                                                        const std::filesystem::path& directory) {
  const absl::Time begin = absl::Now();
  LEMO_ASSIGN_OR_RETURN(std::unique_ptr<Process> process,
                        Process::Start({settings.coordinator, "--dir", directory.string(),
                                        "--listen", "127.0.0.1:0", "--train", settings.train},
                                       settings.scratch / "coordinator.log"));
  const std::string kSays = "listening on ";
  std::optional<std::string> line;
  while ((line = process->NextLine()) && line->rfind(kSays, 0) != 0) {
  }
  if (!line) {
    return absl::InternalError(absl::StrCat("the coordinator did not start: see ",
                                            (settings.scratch / "coordinator.log").string()));
  }
  std::unique_ptr<Service> service(
      new Service(settings, std::move(process), line->substr(kSays.size())));
  cli::Health health = cli::Health::kNotServing;
  while (health != cli::Health::kServing) {
    const grpc::Status checked = cli::CheckHealth(service->channel_, kPatience, &health);
    LEMO_RETURN_IF_ERROR(FromGrpc(checked, "health"));
    if (absl::Now() > begin + kPatience) return absl::DeadlineExceededError("health");
  }
  service->start_time_ = absl::Now() - begin;
  return service;
}

absl::StatusOr<std::unique_ptr<Process>> Service::StartWorker(
    const std::filesystem::path& directory) {
  const auto cluster = lemo::v1::ClusterService::NewStub(channel_);
  const absl::Time begin = absl::Now();
  LEMO_ASSIGN_OR_RETURN(std::unique_ptr<Process> process,
                        Process::Start({settings_.worker, "--coordinator", address_, "--dir",
                                        directory.string(), "--train", settings_.train,
                                        "--model-root", settings_.model.parent_path().string()},
                                       settings_.scratch / "worker.log"));
  while (absl::Now() < begin + kPatience) {
    grpc::ClientContext context;
    lemo::v1::ListWorkersResponse workers;
    LEMO_RETURN_IF_ERROR(FromGrpc(cluster->ListWorkers(&context, {}, &workers), "list workers"));
    for (const lemo::v1::Worker& worker : workers.workers()) {
      if (worker.state() == lemo::v1::Worker::READY) return process;
    }
    absl::SleepFor(kPoll);
  }
  return absl::DeadlineExceededError("no worker became READY");
}

absl::StatusOr<std::string> Service::Upload(const std::string& name, const std::string& text) {
  const auto files = lemo::v1::FileService::NewStub(channel_);
  grpc::ClientContext context;
  lemo::v1::File file;
  const auto writer = files->UploadFile(&context, &file);
  lemo::v1::UploadFileRequest request;
  request.mutable_start()->set_upload_id(name);
  request.mutable_start()->set_display_name(name);
  request.mutable_start()->set_bytes(static_cast<int64_t>(text.size()));
  request.mutable_start()->set_sha256(Sha256Hex(text));
  writer->Write(request);
  request.mutable_chunk()->set_data(text);
  writer->Write(request);
  writer->WritesDone();
  LEMO_RETURN_IF_ERROR(FromGrpc(writer->Finish(), "upload"));
  return file.name();
}

absl::StatusOr<lemo::v1::JobSpec> Service::PutJob(int steps) {
  const auto models = lemo::v1::ModelService::NewStub(channel_);
  grpc::ClientContext context;
  lemo::v1::AddModelRequest request;
  request.set_model_id(kModelId);
  request.set_path(settings_.model.string());
  lemo::v1::Model model;
  LEMO_RETURN_IF_ERROR(FromGrpc(models->AddModel(&context, request, &model), "add the model"));
  LEMO_ASSIGN_OR_RETURN(const std::string file, Upload("rows.jsonl", Rows()));
  lemo::v1::JobSpec spec;
  *spec.mutable_run() = RunOverRows(steps);
  spec.mutable_run()->mutable_model()->set_path(model.name());
  spec.mutable_run()->mutable_data()->mutable_train(0)->set_path(file);
  (*spec.mutable_labels())["team"] = "bench";
  return spec;
}

std::string Rows() {
  static const char* const kWords[] = {"the",  "little", "girl", "had", "a",    "big",
                                       "red",  "ball",   "and",  "she", "play", "with",
                                       "park", "one",    "day",  "her", "mom",  "let"};
  std::mt19937 random(7);
  std::string text;
  for (int row = 0; row < 400; ++row) {
    absl::StrAppend(&text, "{\"text\": \"");
    for (unsigned words = 40 + random() % 40; words > 0; --words) {
      absl::StrAppend(&text, kWords[random() % std::size(kWords)], words > 1 ? " " : "");
    }
    absl::StrAppend(&text, "\"}\n");
  }
  return text;
}

lemo::v1::RunSpec RunOverRows(int steps) {
  lemo::v1::RunSpec run;
  run.mutable_model()->set_compute_type("float32");
  run.mutable_data()->add_train();
  run.mutable_data()->set_max_length(128);
  lemo::v1::LoraSpec& lora = *run.mutable_tuner()->mutable_lora();
  lora.set_rank(8);
  lora.set_alpha(16);
  run.mutable_train()->set_steps(steps);
  run.mutable_train()->set_batch_sequences(4);
  run.mutable_train()->set_seed(1);
  return run;
}

}  // namespace lemo::bench
