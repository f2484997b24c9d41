// Finds out which jobs are over for good.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "lemo/v1/job_service.grpc.pb.h"
#include "worker/agent/uplink.h"
#include "worker/agent/waker.h"

namespace lemo::agent {

// What a job leaves on this machine between attempts, its checkpoints above all, is worth keeping
// until the job has ended, wherever that happens; an agent that was away is not told. So it asks,
// on a thread of its own. The public interface belongs to the agent's loop.
class JobSweeper {
 public:
  JobSweeper(std::shared_ptr<grpc::Channel> channel, Waker* waker);
  ~JobSweeper();
  JobSweeper(const JobSweeper&) = delete;
  JobSweeper& operator=(const JobSweeper&) = delete;

  // Starts to ask after these jobs, and wakes the loop when it knows. Nothing while it is asking.
  void Ask(std::vector<std::string> jobs);
  // Of the jobs asked after, those that have ended or never were; once for each Ask. Those of which
  // nothing could be learnt are not among them.
  std::vector<std::string> TakeEnded();

 private:
  const std::unique_ptr<lemo::v1::JobService::Stub> stub_;
  Waker* const waker_;
  Canceller canceller_;
  std::thread thread_;
  std::atomic<bool> done_{false};
  std::vector<std::string> ended_;  // the thread's until done_
};

}  // namespace lemo::agent
