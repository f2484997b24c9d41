#include "coordinator/api/job_checks.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/job_files.h"
#include "common/status_macros.h"
#include "coordinator/api/names.h"
#include "coordinator/core/contract.h"

namespace lemo::coordinator {
namespace {

constexpr size_t kNameLimit = 63, kLabelKeyLimit = 63, kLabelValueLimit = 255, kTypeLimit = 255;
constexpr int kLabelLimit = 16, kRestartsLimit = 1000, kRanksLimit = 4096;

absl::Status CheckFiles(const google::protobuf::RepeatedPtrField<lemo::v1::DataFile>& files,
                        const std::string& field, Store* store, JobRecord* record,
                        Violations* violations) {
  for (int i = 0; i < files.size(); ++i) {
    const std::string& name = files[i].path();
    const std::string path = absl::StrCat(field, "[", i, "].path");
    if (!CheckName("files", name, path).ok()) {
      violations->Add(path,
                      absl::StrCat("expected the name of an uploaded file, files/{id}, got \"",
                                   Shortened(name), "\""));
      continue;
    }
    const absl::StatusOr<lemo::v1::File> file = store->GetFile(name);
    if (absl::IsNotFound(file.status())) {
      violations->Add(path, absl::StrCat(name, ": no such file; upload it first"));
      continue;
    }
    LEMO_RETURN_IF_ERROR(file.status());
    const bool known = std::any_of(record->files.begin(), record->files.end(),
                                   [&name](const auto& input) { return input.name() == name; });
    if (known) continue;
    lemo::v1::InputFile& input = record->files.emplace_back();
    input.set_name(name);
    input.set_bytes(file->bytes());
    input.set_sha256(file->sha256());
  }
  return absl::OkStatus();
}

// A predictor may be another job's result; its files then are the job's input, like data.
absl::Status CheckPredictor(const lemo::v1::TokensSpec& tokens, Store* store, JobRecord* record,
                            Violations* violations) {
  constexpr const char* kField = "run.tokens.predictor";
  const std::string& predictor = tokens.predictor();
  if (!tokens.has_predictor() || predictor == "auto" || predictor.starts_with("/")) {
    return absl::OkStatus();
  }
  if (!CheckName("jobs", predictor, kField).ok()) {
    violations->Add(kField, absl::StrCat("auto, the job that trained one (jobs/{id}), or a "
                                         "directory under a model root of the workers, by its "
                                         "absolute path; got \"",
                                         Shortened(predictor), "\""));
    return absl::OkStatus();
  }
  const absl::StatusOr<lemo::v1::Job> job = store->GetJob(predictor);
  if (absl::IsNotFound(job.status())) {
    violations->Add(kField, absl::StrCat(predictor, ": no such job"));
    return absl::OkStatus();
  }
  LEMO_RETURN_IF_ERROR(job.status());
  bool any = false;
  for (const lemo::v1::Artifact& artifact : job->artifacts()) {
    if (!artifact.path().starts_with(kPredictorPrefix)) continue;
    any = true;
    lemo::v1::InputFile& input = record->files.emplace_back();
    input.set_name(NameOf({predictor, artifact.path()}));
    input.set_bytes(artifact.bytes());
    input.set_sha256(artifact.sha256());
  }
  if (!any) {
    violations->Add(kField,
                    job->state() == lemo::v1::Job::SUCCEEDED
                        ? absl::StrCat(predictor, " has trained no predictor")
                        : absl::StrCat(predictor, " is ", lemo::v1::Job::State_Name(job->state()),
                                       ": it has no result"));
  }
  return absl::OkStatus();
}

void CheckPositive(bool given, double value, const std::string& field, Violations* violations) {
  if (given && !(value > 0 && std::isfinite(value))) {
    violations->Add(field, absl::StrCat("must be above 0, got ", value));
  }
}

// How many ranks there are, and that the run's split of its work is one of so many.
void CheckRanks(const lemo::v1::JobSpec& spec, Violations* violations) {
  const lemo::v1::ResourceSpec& resources = spec.resources();
  const int64_t ranks = resources.has_ranks() ? resources.ranks() : 1;
  if (ranks < 1 || ranks > kRanksLimit) {
    violations->Add("resources.ranks", absl::StrCat("must be 1 to ", kRanksLimit, ", got ", ranks));
    return;
  }
  const int64_t least = resources.has_min_ranks() ? resources.min_ranks() : ranks;
  if (least < 1 || least > ranks) {
    violations->Add("resources.min_ranks", absl::StrCat("must be 1 to resources.ranks, which is ",
                                                        ranks, "; got ", least));
    return;
  }
  const lemo::v1::ParallelSpec& parallel = spec.run().parallel();
  if (parallel.tensor() < 0 || parallel.data() < 0) return;  // the check of the run says so
  const int64_t tensor = std::max(parallel.tensor(), 1);
  const int64_t data = parallel.data();
  if (data > 0 && tensor * data != ranks) {
    violations->Add("run.parallel.data",
                    absl::StrCat("tensor x data is ", tensor, " x ", data, " = ", tensor * data,
                                 ", and resources.ranks is ", ranks));
  } else if (ranks % tensor != 0) {
    violations->Add("run.parallel.tensor", absl::StrCat("must divide resources.ranks, which is ",
                                                        ranks, "; got ", tensor));
  } else if (least < ranks && data > 0) {
    violations->Add("run.parallel.data",
                    "must be 0 or left out with resources.min_ranks below resources.ranks: the "
                    "number of groups follows the ranks that there are");
  }
}

}  // namespace

absl::Status CheckJobSpec(const lemo::v1::JobSpec& spec, Store* store, JobRecord* record,
                          Violations* violations) {
  if (spec.display_name().size() > kNameLimit) {
    violations->Add("display_name", absl::StrCat("at most ", kNameLimit, " characters"));
  }
  if (spec.labels_size() > kLabelLimit) {
    violations->Add("labels", absl::StrCat("at most ", kLabelLimit));
  }
  for (const auto& [key, value] : spec.labels()) {
    if (key.empty() || key.size() > kLabelKeyLimit || value.size() > kLabelValueLimit) {
      violations->Add(absl::StrCat("labels[\"", Shortened(key), "\"]"),
                      absl::StrCat("keys have 1 to ", kLabelKeyLimit,
                                   " characters, values at most ", kLabelValueLimit));
    }
  }

  const lemo::v1::ResourceSpec& resources = spec.resources();
  // Of several numbers of ranks the planner takes those that fit.
  if (spec.plan().ranks().empty()) CheckRanks(spec, violations);
  CheckPlan(spec, absl::Now(), violations);
  const std::string& device = resources.device();
  if (resources.has_device() && device != "any" && device != "cpu" && device != "cuda") {
    violations->Add("resources.device",
                    absl::StrCat("expected any, cpu or cuda, got \"", Shortened(device), "\""));
  }
  if (resources.device_type().size() > kTypeLimit) {
    violations->Add("resources.device_type", absl::StrCat("at most ", kTypeLimit, " characters"));
  }
  CheckPositive(resources.has_memory_bytes(), static_cast<double>(resources.memory_bytes()),
                "resources.memory_bytes", violations);
  if (spec.restart().has_limit() &&
      (spec.restart().limit() < 0 || spec.restart().limit() > kRestartsLimit)) {
    violations->Add("restart.limit", absl::StrCat("must be 0 to ", kRestartsLimit));
  }
  CheckPositive(spec.restart().has_backoff_seconds(), spec.restart().backoff_seconds(),
                "restart.backoff_seconds", violations);
  if (spec.restart().shared_checkpoint_bytes() < 0) {
    violations->Add("restart.shared_checkpoint_bytes", "must not be below 0");
  }
  const lemo::v1::LimitSpec& limits = spec.limits();
  CheckPositive(limits.has_run_seconds(), limits.run_seconds(), "limits.run_seconds", violations);
  CheckPositive(limits.has_disk_bytes(), static_cast<double>(limits.disk_bytes()),
                "limits.disk_bytes", violations);
  CheckPositive(limits.has_host_memory_bytes(), static_cast<double>(limits.host_memory_bytes()),
                "limits.host_memory_bytes", violations);

  const lemo::v1::RunSpec& run = spec.run();
  if (!run.output().dir().empty()) {
    violations->Add("run.output.dir", "belongs to the service; leave it out");
  }
  if (run.data().has_cache_dir()) {
    violations->Add("run.data.cache_dir", "belongs to the service; leave it out");
  }
  if (run.model().has_bases_dir()) {
    violations->Add("run.model.bases_dir", "belongs to the service; leave it out");
  }
  if (run.model().has_weights_digest()) {
    violations->Add("run.model.weights_digest", "belongs to the service; leave it out");
  }
  if (run.has_device()) {
    violations->Add("run.device", "belongs to the service; use resources.device");
  }
  if (!run.tuner().lora().init_from().empty()) {
    violations->Add("run.tuner.lora.init_from", "is a path, which the service does not take yet");
  }
  if (run.tokens().has_predictors_dir()) {
    violations->Add("run.tokens.predictors_dir", "belongs to the service; leave it out");
  }
  LEMO_RETURN_IF_ERROR(CheckPredictor(run.tokens(), store, record, violations));
  if (run.data().train().empty()) violations->Add("run.data.train", "names no file");
  LEMO_RETURN_IF_ERROR(CheckFiles(run.data().train(), "run.data.train", store, record, violations));
  LEMO_RETURN_IF_ERROR(CheckFiles(run.data().eval(), "run.data.eval", store, record, violations));

  const std::string& model = run.model().path();
  if (!CheckName("models", model, "run.model.path").ok()) {
    violations->Add(
        "run.model.path",
        absl::StrCat("expected the name of a model, models/{id}, got \"", Shortened(model), "\""));
    return absl::OkStatus();
  }
  const absl::StatusOr<lemo::v1::Model> found = store->GetModel(model);
  if (absl::IsNotFound(found.status())) {
    violations->Add("run.model.path",
                    absl::StrCat(model, ": no such model; `lemo model add` makes it known"));
    return absl::OkStatus();
  }
  LEMO_RETURN_IF_ERROR(found.status());
  if (found->files().empty()) {
    violations->Add("run.model.path",
                    absl::StrCat(model,
                                 " was added by an older version, which kept no checksums of "
                                 "its files; add it again: `lemo model add ",
                                 model.substr(model.find('/') + 1), " ", found->path(), "`"));
  }
  record->model_path = found->path();
  record->model_fingerprint = found->fingerprint();
  record->model_files.assign(found->files().begin(), found->files().end());
  return absl::OkStatus();
}

}  // namespace lemo::coordinator
