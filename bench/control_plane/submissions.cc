#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "bench/control_plane/measures.h"
#include "common/status_macros.h"

namespace lemo::bench {
namespace {

constexpr int kClients = 32;

struct Client {
  std::vector<double> seconds;
  absl::Status status;
};

// Submits until `end`; what began before `from` is warm-up.
void Submit(const std::string& address, const lemo::v1::JobSpec& spec, int number, absl::Time from,
            absl::Time end, Client* client) {
  const auto jobs = lemo::v1::JobService::NewStub(Dial(address));
  lemo::v1::SubmitJobRequest request;
  *request.mutable_spec() = spec;
  for (int64_t i = 0;; ++i) {
    request.set_request_id(absl::StrCat("client-", number, "-", i));
    grpc::ClientContext context;
    lemo::v1::Job job;
    const absl::Time begin = absl::Now();
    const grpc::Status status = jobs->SubmitJob(&context, request, &job);
    const absl::Time done = absl::Now();
    if (!status.ok()) {
      client->status = FromGrpc(status, "submit");
      return;
    }
    if (done >= end) return;
    if (begin >= from) client->seconds.push_back(absl::ToDoubleSeconds(done - begin));
  }
}

}  // namespace

absl::StatusOr<std::vector<Figure>> MeasureSubmissions(const Settings& settings) {
  LEMO_ASSIGN_OR_RETURN(const std::unique_ptr<Service> service,
                        Service::Start(settings, settings.scratch / "submissions"));
  LEMO_ASSIGN_OR_RETURN(const lemo::v1::JobSpec spec, service->PutJob(/*steps=*/10));
  const absl::Duration duration = absl::Seconds(settings.quick ? 1 : 20);
  const absl::Time from = absl::Now() + absl::Seconds(settings.quick ? 0.3 : 2);
  std::vector<Client> clients(kClients);
  std::vector<std::thread> threads;
  for (int i = 0; i < kClients; ++i) {
    threads.emplace_back(Submit, service->address(), std::cref(spec), i, from, from + duration,
                         &clients[i]);
  }
  for (std::thread& thread : threads) thread.join();
  std::vector<double> all;
  for (const Client& client : clients) {
    LEMO_RETURN_IF_ERROR(client.status);
    all.insert(all.end(), client.seconds.begin(), client.seconds.end());
  }
  const Samples samples(all);
  grpc::ClientContext context;
  lemo::v1::ListJobsRequest request;
  request.set_page_size(1000);
  request.set_filter("state = QUEUED OR state = FAILED");
  lemo::v1::ListJobsResponse checked;
  LEMO_RETURN_IF_ERROR(
      FromGrpc(service->jobs().ListJobs(&context, request, &checked), "list jobs"));
  const double rate = static_cast<double>(samples.size()) / absl::ToDoubleSeconds(duration);

  Figure rate_figure{
      .what = absl::StrCat("submissions acknowledged as durable, ", kClients, " clients"),
      .unit = "/s",
      .measured = rate,
      .goal = 500,
      .bound = Figure::Bound::kAtLeast,
      .remark = absl::StrCat("one validator (the default) checked ", checked.jobs_size(),
                             " of the jobs meanwhile")};
  Figure latency{.what = "... latency p99",
                 .unit = "ms",
                 .measured = samples.Quantile(0.99) * 1e3,
                 .goal = 100,
                 .bound = Figure::Bound::kAtMost,
                 .remark = absl::StrCat(samples.Summary(1e-3), " (ms)"),
                 .detail = samples.ToJson()};
  service->Stop();
  return std::vector<Figure>{std::move(rate_figure), std::move(latency)};
}

}  // namespace lemo::bench
