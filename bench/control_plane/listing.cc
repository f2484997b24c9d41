#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "bench/control_plane/filled_store.h"
#include "bench/control_plane/measures.h"
#include "common/status_macros.h"

namespace lemo::bench {
namespace {

struct Walk {
  std::vector<double> seconds;
  int64_t jobs = 0;
};

// All pages of a list, up to `limit` of them.
absl::StatusOr<Walk> WalkPages(Service& service, const std::string& filter, int limit) {
  Walk walk;
  lemo::v1::ListJobsRequest request;
  request.set_page_size(50);
  request.set_filter(filter);
  do {
    grpc::ClientContext context;
    lemo::v1::ListJobsResponse page;
    const absl::Time begin = absl::Now();
    const grpc::Status status = service.jobs().ListJobs(&context, request, &page);
    walk.seconds.push_back(absl::ToDoubleSeconds(absl::Now() - begin));
    LEMO_RETURN_IF_ERROR(FromGrpc(status, "list jobs"));
    walk.jobs += page.jobs_size();
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty() && static_cast<int>(walk.seconds.size()) < limit);
  return walk;
}

}  // namespace

absl::StatusOr<std::vector<Figure>> MeasureLongList(const Settings& settings) {
  const int64_t count = settings.quick ? 3000 : 100'000;
  const std::filesystem::path directory = settings.scratch / "long-list";
  LEMO_RETURN_IF_ERROR(AddEndedJobs(directory.string(), count));
  LEMO_ASSIGN_OR_RETURN(const std::unique_ptr<Service> service,
                        Service::Start(settings, directory));
  LEMO_RETURN_IF_ERROR(WalkPages(*service, "", 20).status());  // warm-up
  LEMO_ASSIGN_OR_RETURN(const Walk walk, WalkPages(*service, "", 1'000'000));
  if (walk.jobs != count) return absl::InternalError("the list is not complete");
  const Samples samples(walk.seconds);
  const double resident = static_cast<double>(StatusBytes(service->pid(), "VmRSS"));
  const double peak = static_cast<double>(StatusBytes(service->pid(), "VmHWM"));
  std::vector<Figure> figures;
  figures.push_back(
      {.what = absl::StrCat("ListJobs, page of 50 of ", count, " jobs, p99"),
       .unit = "ms",
       .measured = samples.Quantile(0.99) * 1e3,
       .goal = 20,
       .bound = Figure::Bound::kAtMost,
       .remark = absl::StrCat("all pages, one call at a time: ", samples.Summary(1e-3), " (ms)"),
       .detail = samples.ToJson()});
  for (const char* filter : {"state = FAILED", "labels.team = \"odd\"", "state = RUNNING"}) {
    LEMO_ASSIGN_OR_RETURN(const Walk filtered, WalkPages(*service, filter, 500));
    const Samples of_filter(filtered.seconds);
    figures.push_back(
        {.what = absl::StrCat("... with the filter `", filter, "`, p99"),
         .unit = "ms",
         .measured = of_filter.Quantile(0.99) * 1e3,
         .remark = absl::StrCat(of_filter.Summary(1e-3), " (ms); ", filtered.jobs, " jobs seen"),
         .detail = of_filter.ToJson()});
  }
  figures.push_back(
      {.what = absl::StrCat("coordinator resident with ", count, " stored jobs"),
       .unit = "MB",
       .measured = resident / 1e6,
       .goal = 150,
       .bound = Figure::Bound::kAtMost,
       .remark = absl::StrCat("after listing all of them; most so far ",
                              static_cast<int>(std::lround(peak / 1e6)), " MB; started in ",
                              absl::ToInt64Milliseconds(service->start_time()), " ms")});
  service->Stop();
  return figures;
}

}  // namespace lemo::bench
