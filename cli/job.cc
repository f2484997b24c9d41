// lemo job list|get|watch|logs|cancel|pause|resume, and lemo queue.
#include <algorithm>
#include <limits>
#include <string>

#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "cli/errors.h"
#include "cli/format.h"
#include "cli/job_text.h"
#include "cli/stream.h"
#include "cli/watch.h"
#include "common/status_macros.h"

namespace lemo::cli {
namespace {

using lemo::v1::Job;

constexpr int kPageSize = 200;

struct ListFlags {
  std::string filter;
  int limit = 50;
};

struct JobFlags {
  std::string job;
};

struct LogFlags {
  std::string job;
  int rank = 0;
  int attempt = 0;
  bool follow = false;
};

std::string ProgressCell(const Job& job) {
  if (job.progress().step() == 0) return "";
  return absl::StrCat(job.progress().step(), "/", job.progress().steps());
}

std::string LossCell(const Job& job) {
  return job.progress().step() == 0 ? "" : Fixed(job.progress().loss(), 4);
}

absl::StatusOr<int> List(Context& context, const ListFlags& flags) {
  LEMO_ASSIGN_OR_RETURN(Connection* const connection, context.connection());
  lemo::v1::ListJobsResponse all;
  lemo::v1::ListJobsRequest request;
  request.set_filter(flags.filter);
  do {
    request.set_page_size(std::min(kPageSize, flags.limit - all.jobs_size()));
    lemo::v1::ListJobsResponse page;
    LEMO_RETURN_IF_ERROR(connection->Call("list jobs", [&](grpc::ClientContext* rpc) {
      return connection->jobs().ListJobs(rpc, request, &page);
    }));
    for (Job& job : *page.mutable_jobs()) *all.add_jobs() = std::move(job);
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty() && all.jobs_size() < flags.limit);
  if (!context.is_table()) {
    context.Print(all);
    return kExitOk;
  }
  Table table({"name", "display name", "state", "step", "loss", "created", "reason"});
  for (const Job& job : all.jobs()) {
    table.Add({job.name(), job.spec().display_name(), StateName(job.state()), ProgressCell(job),
               LossCell(job), Time(job.create_time()), job.reason()});
  }
  context.out() << table.ToString();
  if (!request.page_token().empty()) {
    context.err() << "more jobs exist; --limit shows them\n";
  }
  return kExitOk;
}

absl::StatusOr<int> Get(Context& context, const JobFlags& flags) {
  LEMO_ASSIGN_OR_RETURN(const std::string name, ResourceName("jobs/", flags.job));
  LEMO_ASSIGN_OR_RETURN(Connection* const connection, context.connection());
  lemo::v1::GetJobRequest request;
  request.set_name(name);
  Job job;
  LEMO_RETURN_IF_ERROR(connection->Call("get " + name, [&](grpc::ClientContext* rpc) {
    return connection->jobs().GetJob(rpc, request, &job);
  }));
  if (context.is_table()) {
    context.out() << JobText(job);
  } else {
    context.Print(job);
  }
  return kExitOk;
}

absl::StatusOr<int> Watch(Context& context, const JobFlags& flags) {
  LEMO_ASSIGN_OR_RETURN(const std::string name, ResourceName("jobs/", flags.job));
  return WatchJob(context, name);
}

// Cancel, pause and resume ask alike; `rpc` is the stub's method.
template <typename Request>
absl::StatusOr<int> Steer(Context& context, const JobFlags& flags, const std::string& verb,
                          grpc::Status (lemo::v1::JobService::Stub::*rpc)(grpc::ClientContext*,
                                                                          const Request&, Job*)) {
  LEMO_ASSIGN_OR_RETURN(const std::string name, ResourceName("jobs/", flags.job));
  LEMO_ASSIGN_OR_RETURN(Connection* const connection, context.connection());
  Request request;
  request.set_name(name);
  Job job;
  LEMO_RETURN_IF_ERROR(connection->Call(verb + " " + name, [&](grpc::ClientContext* rpc_context) {
    return (connection->jobs().*rpc)(rpc_context, request, &job);
  }));
  if (context.is_table()) {
    context.out() << job.name() << "  " << StateName(job.state())
                  << (job.reason().empty() ? "" : "  ") << Printable(job.reason()) << "\n";
  } else {
    context.Print(job);
  }
  return kExitOk;
}

absl::StatusOr<int> Cancel(Context& context, const JobFlags& flags) {
  return Steer<lemo::v1::CancelJobRequest>(context, flags, "cancel",
                                           &lemo::v1::JobService::Stub::CancelJob);
}

absl::StatusOr<int> Pause(Context& context, const JobFlags& flags) {
  return Steer<lemo::v1::PauseJobRequest>(context, flags, "pause",
                                          &lemo::v1::JobService::Stub::PauseJob);
}

absl::StatusOr<int> Resume(Context& context, const JobFlags& flags) {
  return Steer<lemo::v1::ResumeJobRequest>(context, flags, "resume",
                                           &lemo::v1::JobService::Stub::ResumeJob);
}

// What ranks wrote, byte for byte, or chunks with `-o json`. A broken stream is taken up where it
// broke when it is followed.
absl::StatusOr<int> Logs(Context& context, const LogFlags& flags) {
  LEMO_ASSIGN_OR_RETURN(const std::string name, ResourceName("jobs/", flags.job));
  LEMO_ASSIGN_OR_RETURN(Connection* const connection, context.connection());
  lemo::v1::ReadLogsRequest request;
  request.set_name(name);
  request.set_rank(flags.rank);
  request.set_attempt(flags.attempt);
  request.set_follow(flags.follow);
  CatchInterrupts();
  Backoff backoff;
  absl::Time heard = absl::Now();
  // A follower waits for as long as the job is silent, so only a broken link ends it.
  const absl::Duration patience = flags.follow ? absl::InfiniteDuration() : connection->timeout();
  for (;;) {
    Stream<lemo::v1::LogChunk> stream([&](grpc::ClientContext* rpc, grpc::CompletionQueue* queue) {
      return connection->jobs().PrepareAsyncReadLogs(rpc, request, queue);
    });
    lemo::v1::LogChunk chunk;
    StreamEvent event;
    while ((event = stream.Next(patience, &chunk)) == StreamEvent::kMessage) {
      heard = absl::Now();
      backoff.Reset();
      // A new attempt has a log of its own.
      request.set_attempt(chunk.attempt());
      request.set_offset(chunk.offset() + static_cast<int64_t>(chunk.data().size()));
      if (context.is_table()) {
        context.out() << chunk.data() << std::flush;
      } else {
        PrintJsonLine(ToJson(chunk), context.out());
      }
    }
    if (event == StreamEvent::kInterrupted) return kExitInterrupted;
    const grpc::Status status =
        event == StreamEvent::kEnd
            ? stream.status()
            : grpc::Status(grpc::StatusCode::DEADLINE_EXCEEDED, "nothing came any more");
    if (status.ok()) return kExitOk;
    if (!flags.follow || !IsTransient(status.error_code()) ||
        absl::Now() - heard > absl::Minutes(10)) {
      return RpcError("read the logs of " + name, connection->address(), status);
    }
    connection->Pause(backoff.Next());
    if (Interrupts() > 0) return kExitInterrupted;
  }
}

struct NoFlags {};

absl::StatusOr<int> Queue(Context& context, const NoFlags&) {
  LEMO_ASSIGN_OR_RETURN(Connection* const connection, context.connection());
  lemo::v1::GetQueueResponse queue;
  LEMO_RETURN_IF_ERROR(connection->Call("get the queue", [&](grpc::ClientContext* rpc) {
    return connection->cluster().GetQueue(rpc, {}, &queue);
  }));
  if (!context.is_table()) {
    context.Print(queue);
    return kExitOk;
  }
  Table table({"place", "job", "display name", "queued", "reason"});
  for (int i = 0; i < queue.entries_size(); ++i) {
    const lemo::v1::QueueEntry& entry = queue.entries(i);
    table.Add({absl::StrCat(i + 1), entry.job(), entry.display_name(), Time(entry.queued_time()),
               entry.reason()});
  }
  context.out() << table.ToString();
  return kExitOk;
}

}  // namespace

void AddJobCommands(CLI::App& app, Context& context) {
  CLI::App& job = *app.add_subcommand("job", "Jobs: submit, look, steer, fetch");
  job.require_subcommand(1);
  AddSubmitCommand(job, context);

  auto list_flags = std::make_shared<ListFlags>();
  CLI::App* list = AddCommand(job, context, "list", "List jobs, newest first", list_flags, &List);
  list->add_option("--filter", list_flags->filter,
                   "Only these, such as 'state = RUNNING AND labels.team = \"nlp\"'")
      ->type_name("TERMS");
  list->add_option("--limit", list_flags->limit, "At most so many [50]")
      ->check(CLI::Range(1, 1000000).description(""))
      ->type_name("N");

  auto add = [&](const char* name, const char* description,
                 absl::StatusOr<int> (*action)(Context&, const JobFlags&)) {
    auto flags = std::make_shared<JobFlags>();
    CLI::App* command = AddCommand(job, context, name, description, flags, action);
    command->add_option("JOB", flags->job, "Name of the job")->required()->type_name("");
  };
  add("get", "Show one job", &Get);
  add("watch", "Follow a job to its end; exit code 0 succeeded, 1 failed, 3 cancelled", &Watch);

  auto log_flags = std::make_shared<LogFlags>();
  CLI::App* logs = AddCommand(job, context, "logs", "Print what a rank wrote", log_flags, &Logs);
  logs->add_option("JOB", log_flags->job, "Name of the job")->required()->type_name("");
  logs->add_option("--rank", log_flags->rank, "Of this rank [0]")
      ->check(CLI::Range(0, 1000000).description(""))
      ->type_name("N");
  logs->add_option("--attempt", log_flags->attempt, "Of this attempt [the last]")
      ->check(CLI::Range(1, 1000000).description(""))
      ->type_name("N");
  logs->add_flag("-f,--follow", log_flags->follow, "Stay until the job ends");

  add("cancel", "End a job", &Cancel);
  add("pause", "Let a job checkpoint and leave its devices", &Pause);
  add("resume", "Let a paused job go on", &Resume);
  AddFetchCommands(job, context);
  AddCompareCommand(job, context);

  AddCommand(app, context, "queue", "Show the jobs that wait, and why", std::make_shared<NoFlags>(),
             &Queue);
}

}  // namespace lemo::cli
