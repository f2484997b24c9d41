#include "tests/integration/cli/fake_service.h"

#include <algorithm>
#include <chrono>

#include "common/files.h"
#include "grpcpp/health_check_service_interface.h"

namespace lemo::cli {
namespace {

using grpc::ServerContext;
using grpc::Status;
using grpc::StatusCode;

const Status kNotFound(StatusCode::NOT_FOUND, "there is no such thing");

bool IsFinal(const lemo::v1::JobEvent& event) {
  return event.has_state() && event.state().to() >= lemo::v1::Job::SUCCEEDED;
}

Status Send(FakeState* state, const std::string& bytes, int64_t from,
            grpc::ServerWriter<lemo::v1::DataChunk>* writer) {
  constexpr size_t kChunk = 1000;
  int64_t stop = -1;
  {
    const std::lock_guard lock(state->mutex);
    state->downloaded_from.push_back(from);
    std::swap(stop, state->break_download_after);
  }
  for (size_t at = static_cast<size_t>(from); at < bytes.size(); at += kChunk) {
    if (stop >= 0 && static_cast<int64_t>(at) >= stop) return {StatusCode::UNAVAILABLE, "broken"};
    lemo::v1::DataChunk chunk;
    chunk.set_offset(static_cast<int64_t>(at));
    chunk.set_data(bytes.substr(at, kChunk));
    if (!writer->Write(chunk)) return Status::CANCELLED;
  }
  return Status::OK;
}

class Jobs final : public lemo::v1::JobService::Service {
 public:
  explicit Jobs(FakeState* state) : state_(state) {}

  Status SubmitJob(ServerContext*, const lemo::v1::SubmitJobRequest* request,
                   lemo::v1::Job* job) override {
    const std::lock_guard lock(state_->mutex);
    state_->submits.push_back(*request);
    if (state_->unavailable_submits-- > 0) return {StatusCode::UNAVAILABLE, "away"};
    if (!state_->submit_status.ok()) return state_->submit_status;
    if (!request->validate_only()) job->set_name("jobs/a");
    job->set_state(request->spec().has_plan() ? lemo::v1::Job::PLANNING
                                              : lemo::v1::Job::VALIDATING);
    *job->mutable_spec() = request->spec();
    if (!request->validate_only()) state_->jobs.emplace("jobs/a", *job);
    return Status::OK;
  }

  Status PlanJob(ServerContext*, const lemo::v1::PlanJobRequest* request,
                 lemo::v1::PlanJobResponse* response) override {
    const std::lock_guard lock(state_->mutex);
    state_->plans.push_back(*request);
    *response = state_->plan;
    return Status::OK;
  }

  Status GetJob(ServerContext*, const lemo::v1::GetJobRequest* request,
                lemo::v1::Job* job) override {
    return Find(request->name(), job);
  }

  Status CancelJob(ServerContext*, const lemo::v1::CancelJobRequest* request,
                   lemo::v1::Job* job) override {
    const std::lock_guard lock(state_->mutex);
    const auto found = state_->jobs.find(request->name());
    if (found == state_->jobs.end()) return kNotFound;
    found->second.set_state(lemo::v1::Job::CANCELLED);
    *job = found->second;
    return Status::OK;
  }

  Status ListJobs(ServerContext*, const lemo::v1::ListJobsRequest* request,
                  lemo::v1::ListJobsResponse* response) override {
    const std::lock_guard lock(state_->mutex);
    size_t at = request->page_token().empty() ? 0 : std::stoul(request->page_token());
    // Small pages, so that a client has to turn them.
    for (int taken = 0; at < state_->jobs.size() && taken < std::min(2, request->page_size());
         ++at, ++taken) {
      *response->add_jobs() = std::next(state_->jobs.begin(), static_cast<long>(at))->second;
    }
    if (at < state_->jobs.size()) response->set_next_page_token(std::to_string(at));
    return Status::OK;
  }

  Status WatchJob(ServerContext* context, const lemo::v1::WatchJobRequest* request,
                  grpc::ServerWriter<lemo::v1::WatchJobResponse>* writer) override {
    lemo::v1::Job job;
    if (const Status found = Find(request->name(), &job); !found.ok()) return found;
    int64_t cursor = request->after_sequence();
    std::unique_lock lock(state_->mutex);
    state_->watched_from.push_back(cursor);
    bool counted = false;
    while (!context->IsCancelled()) {
      for (const lemo::v1::JobEvent& event : state_->events[request->name()]) {
        if (event.sequence() <= cursor) continue;
        cursor = event.sequence();
        lemo::v1::WatchJobResponse response;
        *response.mutable_event() = event;
        writer->Write(response);
        if (IsFinal(event)) return Status::OK;
      }
      if (!counted) ++state_->watchers_waiting;
      counted = true;
      state_->changed.notify_all();
      state_->changed.wait_for(lock, std::chrono::milliseconds(10));
    }
    return Status::CANCELLED;
  }

  Status ReadLogs(ServerContext*, const lemo::v1::ReadLogsRequest* request,
                  grpc::ServerWriter<lemo::v1::LogChunk>* writer) override {
    const std::lock_guard lock(state_->mutex);
    const auto log = state_->logs.find(request->name());
    if (log == state_->logs.end()) return kNotFound;
    lemo::v1::LogChunk chunk;
    chunk.set_rank(request->rank());
    chunk.set_attempt(1);
    chunk.set_offset(request->offset());
    chunk.set_data(log->second.substr(static_cast<size_t>(request->offset())));
    writer->Write(chunk);
    return Status::OK;
  }

  Status DownloadArtifact(ServerContext*, const lemo::v1::DownloadArtifactRequest* request,
                          grpc::ServerWriter<lemo::v1::DataChunk>* writer) override {
    std::string bytes;
    {
      const std::lock_guard lock(state_->mutex);
      const auto found = state_->artifacts.find(request->path());
      if (found == state_->artifacts.end()) return kNotFound;
      bytes = found->second;
    }
    return Send(state_, bytes, request->offset(), writer);
  }

 private:
  Status Find(const std::string& name, lemo::v1::Job* job) {
    const std::lock_guard lock(state_->mutex);
    const auto found = state_->jobs.find(name);
    if (found == state_->jobs.end()) return kNotFound;
    *job = found->second;
    return Status::OK;
  }

  FakeState* const state_;
};

class Files final : public lemo::v1::FileService::Service {
 public:
  explicit Files(FakeState* state) : state_(state) {}

  Status UploadFile(ServerContext*, grpc::ServerReader<lemo::v1::UploadFileRequest>* reader,
                    lemo::v1::File* file) override {
    lemo::v1::UploadFileRequest request;
    if (!reader->Read(&request) || !request.has_start()) {
      return {StatusCode::INVALID_ARGUMENT, "no start"};
    }
    const lemo::v1::UploadStart start = request.start();
    const std::lock_guard lock(state_->mutex);
    state_->upload_starts.push_back(start);
    std::string& bytes = state_->uploads[start.upload_id()];
    state_->uploaded_from.push_back(static_cast<int64_t>(bytes.size()));
    while (reader->Read(&request)) {
      if (request.chunk().offset() != static_cast<int64_t>(bytes.size())) {
        return {StatusCode::OUT_OF_RANGE, "a gap"};
      }
      bytes += request.chunk().data();
      if (state_->break_upload_after >= 0 &&
          static_cast<int64_t>(bytes.size()) >= state_->break_upload_after) {
        state_->break_upload_after = -1;
        return {StatusCode::UNAVAILABLE, "broken"};
      }
    }
    if (Sha256Hex(bytes) != start.sha256()) return {StatusCode::INVALID_ARGUMENT, "wrong content"};
    file->set_name("files/f" + std::to_string(state_->files.size() + 1));
    file->set_display_name(start.display_name());
    file->set_bytes(start.bytes());
    file->set_sha256(start.sha256());
    state_->files[start.upload_id()] = *file;
    return Status::OK;
  }

  Status GetUpload(ServerContext*, const lemo::v1::GetUploadRequest* request,
                   lemo::v1::Upload* upload) override {
    const std::lock_guard lock(state_->mutex);
    const auto found = state_->uploads.find(request->upload_id());
    if (found == state_->uploads.end()) return kNotFound;
    upload->set_received_bytes(static_cast<int64_t>(found->second.size()));
    const auto file = state_->files.find(request->upload_id());
    if (file != state_->files.end()) *upload->mutable_file() = file->second;
    return Status::OK;
  }

  Status GetFile(ServerContext*, const lemo::v1::GetFileRequest* request,
                 lemo::v1::File* file) override {
    std::string bytes;
    return Find(request->name(), file, &bytes);
  }

  Status DownloadFile(ServerContext*, const lemo::v1::DownloadFileRequest* request,
                      grpc::ServerWriter<lemo::v1::DataChunk>* writer) override {
    lemo::v1::File file;
    std::string bytes;
    if (const Status found = Find(request->name(), &file, &bytes); !found.ok()) return found;
    return Send(state_, bytes, request->offset(), writer);
  }

 private:
  Status Find(const std::string& name, lemo::v1::File* file, std::string* bytes) {
    const std::lock_guard lock(state_->mutex);
    for (const auto& [id, known] : state_->files) {
      if (known.name() != name) continue;
      *file = known;
      *bytes = state_->uploads[id];
      return Status::OK;
    }
    return kNotFound;
  }

  FakeState* const state_;
};

class Models final : public lemo::v1::ModelService::Service {
 public:
  explicit Models(FakeState* state) : state_(state) {}

  Status AddModel(ServerContext*, const lemo::v1::AddModelRequest* request,
                  lemo::v1::Model* model) override {
    const std::lock_guard lock(state_->mutex);
    if (!state_->models.emplace(request->model_id(), request->path()).second) {
      return {StatusCode::ALREADY_EXISTS, "there is one"};
    }
    model->set_name("models/" + request->model_id());
    model->set_path(request->path());
    return Status::OK;
  }

  Status GetModel(ServerContext*, const lemo::v1::GetModelRequest* request,
                  lemo::v1::Model* model) override {
    const std::lock_guard lock(state_->mutex);
    const auto found = state_->models.find(request->name().substr(7));
    if (found == state_->models.end()) return kNotFound;
    model->set_name(request->name());
    model->set_path(found->second);
    return Status::OK;
  }

 private:
  FakeState* const state_;
};

class Cluster final : public lemo::v1::ClusterService::Service {
 public:
  explicit Cluster(FakeState* state) : state_(state) {}

  Status ListWorkers(ServerContext*, const lemo::v1::ListWorkersRequest*,
                     lemo::v1::ListWorkersResponse* response) override {
    const std::lock_guard lock(state_->mutex);
    for (const lemo::v1::Worker& worker : state_->workers) *response->add_workers() = worker;
    return Status::OK;
  }

 private:
  FakeState* const state_;
};

lemo::v1::JobEvent EventAt(int64_t sequence) {
  lemo::v1::JobEvent event;
  event.set_job("jobs/a");
  event.set_sequence(sequence);
  event.mutable_time()->set_seconds(1767225600 + sequence);
  event.set_attempt(1);
  return event;
}

}  // namespace

struct FakeServer::Services {
  explicit Services(FakeState* state) : jobs(state), files(state), models(state), cluster(state) {}
  Jobs jobs;
  Files files;
  Models models;
  Cluster cluster;
};

FakeServer::FakeServer(FakeState* state, int port) : services_(std::make_unique<Services>(state)) {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:" + std::to_string(port), grpc::InsecureServerCredentials(),
                           &port_);
  for (grpc::Service* service : std::initializer_list<grpc::Service*>{
           &services_->jobs, &services_->files, &services_->models, &services_->cluster}) {
    builder.RegisterService(service);
  }
  server_ = builder.BuildAndStart();
}

FakeServer::~FakeServer() {
  if (!server_) return;
  server_->Shutdown(std::chrono::system_clock::now());
  server_->Wait();
}

lemo::v1::JobEvent StateEvent(int64_t sequence, lemo::v1::Job::State to,
                              const std::string& reason) {
  lemo::v1::JobEvent event = EventAt(sequence);
  event.mutable_state()->set_to(to);
  event.mutable_state()->set_reason(reason);
  return event;
}

lemo::v1::JobEvent StepEvent(int64_t sequence, int step) {
  lemo::v1::JobEvent event = EventAt(sequence);
  event.mutable_run()->mutable_step()->set_step(step);
  event.mutable_run()->mutable_step()->set_steps(2);
  return event;
}

}  // namespace lemo::cli
