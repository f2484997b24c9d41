// One WatchJob call: a cursor over a job's events, written as fast as the watcher reads.
#pragma once

#include <grpcpp/support/server_callback.h>

#include <deque>
#include <memory>
#include <mutex>
#include <string>

#include "coordinator/runtime/watch_hub.h"
#include "lemo/v1/job_service.pb.h"

namespace lemo::coordinator {

// Holds at most one page of events, however slow its reader. Lives until gRPC is done with the
// call.
class WatchReactor final : public grpc::ServerWriteReactor<lemo::v1::WatchJobResponse>,
                           public Watcher {
 public:
  static grpc::ServerWriteReactor<lemo::v1::WatchJobResponse>* Create(
      WatchHub* hub, const lemo::v1::WatchJobRequest& request);

  WatchReactor(WatchHub* hub, const lemo::v1::WatchJobRequest& request);
  void Wake(bool heartbeat) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  // Writes the next message, or finishes, or leaves the reactor idle. Only who has set busy_ calls
  // it.
  void Next();
  void End(const grpc::Status& status);

  WatchHub* const hub_;
  const std::string job_;
  std::shared_ptr<WatchReactor> self_;  // until OnDone

  std::mutex mutex_;
  bool busy_ = true;    // a write, or Next, is under way
  bool woken_ = false;  // since Next read last
  bool heartbeat_ = false;
  bool cancelled_ = false;
  bool ended_ = false;

  // Of who has set busy_.
  int64_t cursor_;
  std::deque<std::shared_ptr<const lemo::v1::JobEvent>> page_;
  bool complete_ = false;
  lemo::v1::WatchJobResponse response_;
};

}  // namespace lemo::coordinator
