#include "worker/agent/job_sweeper.h"

#include <utility>

namespace lemo::agent {
namespace {

constexpr auto kTimeout = std::chrono::seconds(5);

bool HasEnded(const lemo::v1::Job& job) {
  return job.state() == lemo::v1::Job::SUCCEEDED || job.state() == lemo::v1::Job::FAILED ||
         job.state() == lemo::v1::Job::CANCELLED;
}

}  // namespace

JobSweeper::JobSweeper(std::shared_ptr<grpc::Channel> channel, Waker* waker)
    : stub_(lemo::v1::JobService::NewStub(std::move(channel))), waker_(waker) {}

JobSweeper::~JobSweeper() {
  canceller_.Cancel();
  if (thread_.joinable()) thread_.join();
}

void JobSweeper::Ask(std::vector<std::string> jobs) {
  if (thread_.joinable() || jobs.empty()) return;
  done_ = false;
  thread_ = std::thread([this, jobs = std::move(jobs)] {
    for (const std::string& name : jobs) {
      CancellableContext context(&canceller_, kTimeout);
      lemo::v1::GetJobRequest request;
      request.set_name(name);
      lemo::v1::Job job;
      const grpc::Status status = stub_->GetJob(context.get(), request, &job);
      if ((status.ok() && HasEnded(job)) || status.error_code() == grpc::StatusCode::NOT_FOUND) {
        ended_.push_back(name);
      } else if (!status.ok()) {
        break;  // the next time
      }
    }
    done_ = true;
    waker_->Wake();
  });
}

std::vector<std::string> JobSweeper::TakeEnded() {
  if (!thread_.joinable() || !done_) return {};
  thread_.join();
  return std::exchange(ended_, {});
}

}  // namespace lemo::agent
