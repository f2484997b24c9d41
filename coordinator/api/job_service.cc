#include "coordinator/api/job_service.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/files.h"
#include "coordinator/api/content_stream.h"
#include "coordinator/api/errors.h"
#include "coordinator/api/job_checks.h"
#include "coordinator/api/names.h"
#include "coordinator/api/watch_reactor.h"
#include "coordinator/core/contract.h"
#include "coordinator/store/job_filter.h"
#include "coordinator/store/job_row.h"
#include "google/protobuf/util/field_mask_util.h"
#include "google/protobuf/util/time_util.h"

namespace lemo::coordinator {
namespace {

using google::protobuf::util::FieldMaskUtil;

constexpr size_t kRequestIdLimit = 128;
constexpr int kEventPage = 1000;
// Queues change; who waits longer should look again.
constexpr absl::Duration kOffersLast = absl::Minutes(15);

// The same request has the same bytes whatever order its maps came in.
std::string HashOf(const lemo::v1::JobSpec& spec) {
  return Sha256Hex(SerializeDeterministic(spec));
}

absl::Status CheckMask(const google::protobuf::FieldMask& mask) {
  for (const std::string& path : mask.paths()) {
    // The library passes over parts that are empty.
    const bool gap = absl::StrContains(absl::StrCat(".", path, "."), "..");
    if (path != "*" && (gap || !FieldMaskUtil::IsValidPath<lemo::v1::Job>(path))) {
      return absl::InvalidArgumentError(
          absl::StrCat("read_mask: a job has no field \"", Shortened(path, 80), "\""));
    }
  }
  return absl::OkStatus();
}

// Leaves what a valid mask names; all of it when it names nothing, or `*`.
void Trim(const google::protobuf::FieldMask& mask, lemo::v1::Job* job) {
  const bool all = std::find(mask.paths().begin(), mask.paths().end(), "*") != mask.paths().end();
  if (!all) FieldMaskUtil::TrimMessage(mask, job);
}

grpc::Status FromVerdict(const lemo::v1::Failure& failure) {
  if (failure.kind() != lemo::v1::Failure::USER_ERROR) {
    return ToGrpc(absl::InternalError(failure.message()));
  }
  Violations violations;
  for (const lemo::v1::Violation& violation : failure.violations()) {
    const Violation one{"", violation.reason(), violation.file(), violation.line(),
                        violation.json_path()};
    violations.Add(violation.field(), one.ToString());
  }
  if (violations.empty()) violations.Add("run", failure.message());
  return InvalidArgument(violations, failure.message());
}

}  // namespace

grpc::Status JobServiceImpl::SubmitJob(grpc::ServerContext*,
                                       const lemo::v1::SubmitJobRequest* request,
                                       lemo::v1::Job* job) {
  JobRecord record;
  Violations violations;
  if (request->request_id().size() > kRequestIdLimit) {
    violations.Add("request_id", absl::StrCat("at most ", kRequestIdLimit, " characters"));
  }
  const absl::Status looked_up = CheckJobSpec(request->spec(), store_, &record, &violations);
  if (!looked_up.ok()) return ToGrpc(looked_up);
  if (!violations.empty()) return InvalidArgument(violations);
  *record.job.mutable_spec() = request->spec();
  if (request->validate_only()) {
    const Finding finding = validator_->Check(record);
    if (finding.verdict) return FromVerdict(*finding.verdict);
    *job = record.job;
    if (finding.contract) {
      *job->mutable_contract() = *finding.contract;
      NameBase(record, job->mutable_contract());
      ApplyContract(*finding.contract, job->mutable_spec());
    }
    return grpc::Status::OK;
  }
  const std::string id = NewId();
  record.job.set_name("jobs/" + id);
  if (request->spec().display_name().empty()) record.job.mutable_spec()->set_display_name(id);
  *record.job.mutable_create_time() = google::protobuf::util::TimeUtil::GetCurrentTime();
  record.request_id = request->request_id();
  record.request_hash = HashOf(request->spec());
  absl::StatusOr<lemo::v1::Job> made = cluster_->Submit(std::move(record));
  if (!made.ok()) return ToGrpc(made.status());
  *job = *std::move(made);
  return grpc::Status::OK;
}

grpc::Status JobServiceImpl::PlanJob(grpc::ServerContext*, const lemo::v1::PlanJobRequest* request,
                                     lemo::v1::PlanJobResponse* response) {
  JobRecord record;
  Violations violations;
  lemo::v1::JobSpec spec = request->spec();
  spec.mutable_plan();  // an empty one asks for everything
  const absl::Status looked_up = CheckJobSpec(spec, store_, &record, &violations);
  if (!looked_up.ok()) return ToGrpc(looked_up);
  if (!violations.empty()) return InvalidArgument(violations);
  *record.job.mutable_spec() = std::move(spec);
  if (const Verdict verdict = validator_->Plan(record, response->mutable_plan())) {
    response->Clear();
    return FromVerdict(*verdict);
  }
  *response->mutable_expire_time() = google::protobuf::util::TimeUtil::SecondsToTimestamp(
      absl::ToUnixSeconds(absl::Now() + kOffersLast));
  return grpc::Status::OK;
}

grpc::Status JobServiceImpl::GetJob(grpc::ServerContext*, const lemo::v1::GetJobRequest* request,
                                    lemo::v1::Job* job) {
  if (absl::Status valid = CheckName("jobs", request->name(), "name"); !valid.ok())
    return ToGrpc(valid);
  if (absl::Status valid = CheckMask(request->read_mask()); !valid.ok()) return ToGrpc(valid);
  absl::StatusOr<lemo::v1::Job> found = store_->GetJob(request->name());
  if (!found.ok()) return ToGrpc(found.status());
  *job = *std::move(found);
  Trim(request->read_mask(), job);
  return grpc::Status::OK;
}

grpc::Status JobServiceImpl::ListJobs(grpc::ServerContext*,
                                      const lemo::v1::ListJobsRequest* request,
                                      lemo::v1::ListJobsResponse* response) {
  const absl::StatusOr<int> page_size = PageSize(request->page_size());
  if (!page_size.ok()) return ToGrpc(page_size.status());
  const absl::StatusOr<JobFilter> filter = ParseJobFilter(request->filter());
  if (!filter.ok()) return ToGrpc(filter.status());
  const absl::StatusOr<bool> newest_first = ParseJobOrder(request->order_by());
  if (!newest_first.ok()) return ToGrpc(newest_first.status());
  if (absl::Status valid = CheckMask(request->read_mask()); !valid.ok()) return ToGrpc(valid);
  absl::StatusOr<JobPage> page =
      store_->ListJobs(*filter, *newest_first, *page_size, request->page_token());
  if (!page.ok()) return ToGrpc(page.status());
  for (lemo::v1::Job& job : page->jobs) {
    Trim(request->read_mask(), &job);
    *response->add_jobs() = std::move(job);
  }
  response->set_next_page_token(page->next_token);
  return grpc::Status::OK;
}

template <typename Requested, typename Request>
grpc::Status JobServiceImpl::Steer(const Request& request, lemo::v1::Job* job) {
  if (absl::Status valid = CheckName("jobs", request.name(), "name"); !valid.ok())
    return ToGrpc(valid);
  absl::StatusOr<lemo::v1::Job> before = store_->GetJob(request.name());
  if (!before.ok()) return ToGrpc(before.status());
  if (!request.etag().empty() && request.etag() != before->etag()) {
    return ToGrpc(absl::AbortedError(request.name() + " has changed since; read it again"));
  }
  if (HasEnded(before->state())) {
    // The core has forgotten it. To end what has ended is no fault.
    if (std::is_same_v<Requested, CancelRequested> && before->state() == lemo::v1::Job::CANCELLED) {
      *job = *std::move(before);
      return grpc::Status::OK;
    }
    return PreconditionFailed("JOB_STATE", request.name(),
                              absl::StrCat(request.name(), " is ",
                                           lemo::v1::Job::State_Name(before->state()), " already"));
  }
  if (absl::Status done = cluster_->Do(Requested{request.name()}); !done.ok()) return ToGrpc(done);
  absl::StatusOr<lemo::v1::Job> after = store_->GetJob(request.name());
  if (!after.ok()) return ToGrpc(after.status());
  *job = *std::move(after);
  return grpc::Status::OK;
}

grpc::Status JobServiceImpl::CancelJob(grpc::ServerContext*,
                                       const lemo::v1::CancelJobRequest* request,
                                       lemo::v1::Job* job) {
  return Steer<CancelRequested>(*request, job);
}

grpc::Status JobServiceImpl::PauseJob(grpc::ServerContext*,
                                      const lemo::v1::PauseJobRequest* request,
                                      lemo::v1::Job* job) {
  return Steer<PauseRequested>(*request, job);
}

grpc::Status JobServiceImpl::ResumeJob(grpc::ServerContext*,
                                       const lemo::v1::ResumeJobRequest* request,
                                       lemo::v1::Job* job) {
  return Steer<ResumeRequested>(*request, job);
}

grpc::ServerWriteReactor<lemo::v1::WatchJobResponse>* JobServiceImpl::WatchJob(
    grpc::CallbackServerContext*, const lemo::v1::WatchJobRequest* request) {
  return WatchReactor::Create(hub_, *request);
}

grpc::Status JobServiceImpl::ReadLogs(grpc::ServerContext* context,
                                      const lemo::v1::ReadLogsRequest* request,
                                      grpc::ServerWriter<lemo::v1::LogChunk>* writer) {
  constexpr std::chrono::milliseconds kFollow{250};
  if (absl::Status valid = CheckName("jobs", request->name(), "name"); !valid.ok())
    return ToGrpc(valid);
  if (request->offset() < 0 || request->rank() < 0 || request->attempt() < 0) {
    return ToGrpc(absl::InvalidArgumentError("offset, rank and attempt cannot be negative"));
  }
  lemo::v1::LogChunk chunk;
  chunk.set_rank(request->rank());
  chunk.set_attempt(request->attempt());
  int64_t offset = request->offset();
  while (!context->IsCancelled()) {
    const absl::StatusOr<lemo::v1::Job> job = store_->GetJob(request->name());
    if (!job.ok()) return ToGrpc(job.status());
    if (chunk.attempt() == 0) chunk.set_attempt(job->attempt());
    const absl::StatusOr<std::string> data =
        logs_->Read(request->name(), chunk.attempt(), chunk.rank(), offset);
    if (!data.ok()) return ToGrpc(data.status());
    if (data->empty()) {
      const absl::Time end = absl::FromUnixSeconds(job->end_time().seconds());
      if (offset == request->offset() && HasEnded(job->state()) && end + keep_logs_ < absl::Now()) {
        return ToGrpc(absl::OutOfRangeError(
            request->name() + " ended long ago and its logs were dropped; the job itself is kept"));
      }
      if (!request->follow() || HasEnded(job->state())) return grpc::Status::OK;
      if (request->attempt() == 0 && job->attempt() != chunk.attempt()) {
        chunk.set_attempt(job->attempt());
        offset = 0;
        continue;
      }
      std::this_thread::sleep_for(kFollow);
      continue;
    }
    chunk.set_offset(offset);
    chunk.set_data(*data);
    offset += static_cast<int64_t>(data->size());
    if (!writer->Write(chunk)) break;
  }
  return grpc::Status::CANCELLED;
}

grpc::Status JobServiceImpl::ListCheckpoints(grpc::ServerContext*,
                                             const lemo::v1::ListCheckpointsRequest* request,
                                             lemo::v1::ListCheckpointsResponse* response) {
  if (absl::Status valid = CheckName("jobs", request->name(), "name"); !valid.ok())
    return ToGrpc(valid);
  if (const auto job = store_->GetJob(request->name()); !job.ok()) return ToGrpc(job.status());
  int64_t after = 0;
  for (;;) {
    const auto events = store_->Events(request->name(), after, kEventPage);
    if (!events.ok()) return ToGrpc(events.status());
    for (const lemo::v1::JobEvent& event : *events) {
      after = event.sequence();
      if (!event.run().has_checkpoint() || event.run().checkpoint().reason() == "resumed") continue;
      lemo::v1::Checkpoint* checkpoint = response->add_checkpoints();
      checkpoint->set_step(event.run().checkpoint().step());
      checkpoint->set_attempt(event.attempt());
      checkpoint->set_bytes(event.run().checkpoint().bytes());
      *checkpoint->mutable_time() = event.time();
      checkpoint->set_reason(event.run().checkpoint().reason());
    }
    if (events->size() < kEventPage) return grpc::Status::OK;
  }
}

grpc::Status JobServiceImpl::DownloadArtifact(grpc::ServerContext*,
                                              const lemo::v1::DownloadArtifactRequest* request,
                                              grpc::ServerWriter<lemo::v1::DataChunk>* writer) {
  if (absl::Status valid = CheckName("jobs", request->name(), "name"); !valid.ok())
    return ToGrpc(valid);
  const absl::StatusOr<lemo::v1::Job> job = store_->GetJob(request->name());
  if (!job.ok()) return ToGrpc(job.status());
  for (const lemo::v1::Artifact& artifact : job->artifacts()) {
    if (artifact.path() == request->path()) {
      return SendContent(artifacts_, artifact.sha256(), request->offset(), writer);
    }
  }
  for (const lemo::v1::Artifact& file : job->checkpoint().files()) {
    if (std::string(kCheckpointPrefix) + file.path() == request->path()) {
      return SendContent(checkpoints_, file.sha256(), request->offset(), writer);
    }
  }
  return ToGrpc(absl::NotFoundError(
      absl::StrCat(request->name(), " has no artifact \"", Shortened(request->path(), 200), "\"")));
}

}  // namespace lemo::coordinator
