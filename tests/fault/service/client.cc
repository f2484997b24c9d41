#include "tests/fault/service/client.h"

#include <gtest/gtest.h>

#include <thread>
#include <utility>

#include "absl/strings/str_format.h"

namespace lemo::coordinator {
namespace {

using lemo::v1::Job;

std::unique_ptr<lemo::v1::JobService::Stub> Dial(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 5000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 200);
  return lemo::v1::JobService::NewStub(
      grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
}

// Says "try again" rather than "no".
bool IsTransient(const grpc::Status& status) {
  switch (status.error_code()) {
    case grpc::StatusCode::UNAVAILABLE:
    case grpc::StatusCode::DEADLINE_EXCEEDED:
    case grpc::StatusCode::CANCELLED:
    case grpc::StatusCode::ABORTED:
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
    case grpc::StatusCode::INTERNAL:  // what a broken connection can look like
    case grpc::StatusCode::UNKNOWN:
      return true;
    default:
      return false;
  }
}

}  // namespace

Client::Client(const std::string& address, const std::vector<lemo::v1::JobSpec>* specs,
               unsigned seed)
    : jobs_stub_(Dial(address)), specs_(specs), random_(seed) {}

void Client::Run(const std::atomic<bool>& enough, const std::atomic<Clock::time_point>& deadline) {
  deadline_ = &deadline;
  do {
    Followed job;
    job.spec = random_() % specs_->size();
    job.name = Submit((*specs_)[job.spec]);
    if (job.name.empty()) return;
    const int steps = (*specs_)[job.spec].run().train().steps();
    pause_at_ = random_() % 3 == 0 ? 1 + static_cast<int>(random_() % (steps / 2)) : 0;
    Follow(&job);
    jobs_.push_back(std::move(job));
  } while (!enough && !OverTime());
}

std::unique_ptr<grpc::ClientContext> Client::Context() {
  auto context = std::make_unique<grpc::ClientContext>();
  const auto patience = std::chrono::milliseconds(200 + random_() % 4000);
  context->set_deadline(std::chrono::system_clock::now() + patience);
  context->set_wait_for_ready(random_() % 2 == 0);
  return context;
}

grpc::Status Client::Call(const std::function<grpc::Status(grpc::ClientContext*)>& call) {
  for (;;) {
    const grpc::Status status = call(Context().get());
    if (status.ok() || !IsTransient(status) || OverTime()) return status;
    ++counts_.errors;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
}

std::string Client::Submit(const lemo::v1::JobSpec& spec) {
  lemo::v1::SubmitJobRequest request;
  *request.mutable_spec() = spec;
  request.set_request_id(
      absl::StrFormat("%08x-0000-4000-8000-%08x%04x", random_(), random_(), random_() & 0xffff));
  std::string name;
  // Once more, now and then, although the first was acknowledged.
  for (int calls = random_() % 3 == 0 ? 2 : 1; calls > 0; --calls) {
    Job job;
    const grpc::Status status = Call([&](grpc::ClientContext* context) {
      ++counts_.submissions;
      return jobs_stub_->SubmitJob(context, request, &job);
    });
    EXPECT_TRUE(status.ok()) << "submit: " << status.error_code() << " " << status.error_message();
    if (!status.ok()) return name;
    if (!name.empty()) {
      EXPECT_EQ(job.name(), name) << "one request is two jobs";
    }
    name = job.name();
  }
  return name;
}

void Client::Pause(const std::string& name) {
  lemo::v1::PauseJobRequest request;
  request.set_name(name);
  Job job;
  const grpc::Status status = Call(
      [&](grpc::ClientContext* context) { return jobs_stub_->PauseJob(context, request, &job); });
  if (status.ok()) ++counts_.pauses;
  // It may just have ended.
  if (!status.ok() && !OverTime()) {
    EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION) << status.error_message();
  }
}

void Client::Resume(const std::string& name) {
  lemo::v1::ResumeJobRequest request;
  request.set_name(name);
  Job job;
  Call([&](grpc::ClientContext* context) { return jobs_stub_->ResumeJob(context, request, &job); });
}

void Client::Follow(Followed* job) {
  while (!OverTime()) {
    const grpc::Status status = Watch(job);
    if (status.ok()) {
      job->ended = true;
      return;
    }
    if (!IsTransient(status)) {
      ADD_FAILURE() << "watch of " << job->name << ": " << status.error_code() << " "
                    << status.error_message();
      return;
    }
    // Asked whenever it is seen paused: a call that was given up may still have been carried out.
    for (auto event = job->events.rbegin(); event != job->events.rend(); ++event) {
      if (!event->has_state()) continue;
      if (event->state().to() == Job::PAUSED) Resume(job->name);
      break;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

grpc::Status Client::Watch(Followed* job) {
  ++counts_.watches;
  const auto context = Context();
  lemo::v1::WatchJobRequest request;
  request.set_name(job->name);
  request.set_after_sequence(static_cast<int64_t>(job->events.size()));
  const auto reader = jobs_stub_->WatchJob(context.get(), request);
  bool pause = false;
  for (lemo::v1::WatchJobResponse response; reader->Read(&response);) {
    if (!response.has_event()) continue;
    const lemo::v1::JobEvent& event = response.event();
    EXPECT_EQ(event.sequence(), static_cast<int64_t>(job->events.size()) + 1) << job->name;
    EXPECT_EQ(event.job(), job->name);
    job->events.push_back(event);
    if (pause_at_ > 0 && event.run().step().step() >= pause_at_) {
      pause = true;
      pause_at_ = 0;
      context->TryCancel();
    }
    if (event.state().to() == Job::PAUSED) context->TryCancel();
  }
  const grpc::Status status = reader->Finish();
  if (pause) Pause(job->name);
  return status;
}

}  // namespace lemo::coordinator
