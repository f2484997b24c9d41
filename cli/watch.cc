#include "cli/watch.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/errors.h"
#include "cli/format.h"
#include "cli/job_text.h"
#include "cli/progress.h"
#include "cli/stream.h"
#include "cli/watch_text.h"
#include "common/status_macros.h"

namespace lemo::cli {
namespace {

using lemo::v1::Job;
using lemo::v1::JobEvent;
using lemo::v1::WatchJobResponse;

constexpr absl::Duration kRedraw = absl::Milliseconds(100);
// The coordinator's heartbeats come far more often.
constexpr absl::Duration kSilence = absl::Seconds(60);
constexpr absl::Duration kGiveUp = absl::Minutes(10);

class Watch {
 public:
  Watch(Context& context, const Connection& connection, Job job)
      : context_(context),
        connection_(connection),
        job_(std::move(job)),
        text_({.terminal = context.is_table() && IsTerminal(context.out()),
               .width = TerminalWidth(),
               .memory_limit = job_.has_contract() ? job_.contract().memory_bytes()
                                                   : job_.spec().limits().host_memory_bytes()}) {}

  absl::StatusOr<int> Run() {
    CatchInterrupts();
    Backoff backoff;
    absl::Time heard = absl::Now();
    for (;;) {
      const int64_t before = last_sequence_;
      const absl::StatusOr<End> end = Follow(&heard);
      if (!end.ok()) return Stop(end.status());
      if (*end == End::kInterrupted || Interrupts() > 0) return Interrupted();
      // A stream may end without the last event: history is pruned, a server shuts down.
      const absl::Status looked = Look();
      if (looked.ok()) {
        heard = absl::Now();
        if (IsFinal(job_.state()) && (*end == End::kFinal || status_.ok())) return Finish();
      } else if (!IsTransient(static_cast<grpc::StatusCode>(looked.code()))) {
        return Stop(looked);
      }
      if (last_sequence_ > before) backoff.Reset();
      if (absl::Now() - heard > kGiveUp) {
        return Stop(looked.ok() ? RpcError("watch " + job_.name(), connection_.address(), status_)
                                : looked);
      }
      if (!Pause(backoff.Next(), heard)) return Interrupted();
    }
  }

 private:
  enum class End { kFinal, kBroken, kInterrupted };

  // One stream, from behind the last event. An error is one that another try cannot mend.
  absl::StatusOr<End> Follow(absl::Time* heard) {
    lemo::v1::WatchJobRequest request;
    request.set_name(job_.name());
    request.set_after_sequence(last_sequence_);
    Stream<WatchJobResponse> stream(
        [&](grpc::ClientContext* context, grpc::CompletionQueue* queue) {
          return connection_.jobs().PrepareAsyncWatchJob(context, request, queue);
        });
    absl::Time next_draw = absl::InfinitePast();
    bool changed = true;
    WatchJobResponse response;
    for (;;) {
      const absl::Time now = absl::Now();
      if (changed && now >= next_draw) {
        Write(text_.Draw());
        changed = false;
        next_draw = now + kRedraw;
      }
      switch (stream.Next(changed ? kRedraw : kSilence, &response)) {
        case StreamEvent::kInterrupted:
          return End::kInterrupted;
        case StreamEvent::kTimeout:
          if (absl::Now() - *heard < kSilence) continue;  // only time to draw
          status_ = grpc::Status(grpc::StatusCode::UNAVAILABLE, "nothing was heard any more");
          return End::kBroken;
        case StreamEvent::kEnd:
          status_ = stream.status();
          // The events of a job that ended long ago are dropped; what it became is not.
          if (status_.error_code() == grpc::StatusCode::OUT_OF_RANGE) status_ = grpc::Status::OK;
          if (!status_.ok() && !IsTransient(status_.error_code())) {
            return RpcError("watch " + job_.name(), connection_.address(), status_);
          }
          return End::kBroken;
        case StreamEvent::kMessage:
          break;
      }
      *heard = absl::Now();
      if (!response.has_event() || response.event().sequence() <= last_sequence_) continue;
      last_sequence_ = response.event().sequence();
      Show(response.event());
      changed = true;
      if (response.event().has_state() && IsFinal(response.event().state().to())) {
        return End::kFinal;
      }
    }
  }

  absl::Status Look() {
    lemo::v1::GetJobRequest request;
    request.set_name(job_.name());
    Job job;
    const absl::Status status =
        connection_.Call("get " + job_.name(), [&](grpc::ClientContext* context) {
          return connection_.jobs().GetJob(context, request, &job);
        });
    if (status.ok()) job_ = std::move(job);
    return status;
  }

  void Show(const JobEvent& event) {
    switch (context_.flags.output) {
      case OutputFormat::kTable:
        Write(text_.Event(event));
        break;
      case OutputFormat::kJson:
        PrintJsonLine(ToJson(event), context_.out());
        break;
      case OutputFormat::kYaml:
        context_.out() << "---\n";
        PrintJson(ToJson(event), OutputFormat::kYaml, context_.out());
        context_.out() << std::flush;
        break;
    }
  }

  // False when Ctrl-C came meanwhile.
  bool Pause(absl::Duration pause, absl::Time heard) {
    const std::string note = absl::StrCat("the coordinator does not answer (",
                                          HumanDuration(absl::ToDoubleSeconds(absl::Now() - heard)),
                                          "); the job goes on, trying again");
    if (context_.is_table()) Write(text_.DrawNote(note));
    const absl::Time end = absl::Now() + pause;
    while (absl::Now() < end) {
      if (Interrupts() > 0) return false;
      if (connection_.Pause(std::min(absl::Milliseconds(50), end - absl::Now()))) break;
    }
    return Interrupts() == 0;
  }

  absl::StatusOr<int> Finish() {
    if (context_.is_table()) Write(text_.Erase() + WatchText::Ending(job_));
    return ExitCodeOf(job_.state());
  }

  absl::StatusOr<int> Interrupted() {
    Write(text_.Erase());
    context_.err() << job_.name() << " goes on; look again with: lemo job watch " << job_.name()
                   << "\n";
    return kExitInterrupted;
  }

  absl::Status Stop(const absl::Status& status) {
    Write(text_.Erase());
    return status;
  }

  void Write(const std::string& text) {
    if (!text.empty()) context_.out() << text << std::flush;
  }

  Context& context_;
  const Connection& connection_;
  Job job_;
  WatchText text_;
  int64_t last_sequence_ = 0;
  grpc::Status status_;  // of the last stream
};

}  // namespace

absl::StatusOr<int> WatchJob(Context& context, const std::string& job) {
  LEMO_ASSIGN_OR_RETURN(Connection* const connection, context.connection());
  lemo::v1::GetJobRequest request;
  request.set_name(job);
  Job found;
  LEMO_RETURN_IF_ERROR(connection->Call("get " + job, [&](grpc::ClientContext* rpc) {
    return connection->jobs().GetJob(rpc, request, &found);
  }));
  return Watch(context, *connection, std::move(found)).Run();
}

}  // namespace lemo::cli
