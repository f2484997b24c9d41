#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "bench/control_plane/measures.h"
#include "common/status_macros.h"

namespace lemo::bench {

absl::StatusOr<std::vector<Figure>> MeasureStart(const Settings& settings) {
  const int rounds = settings.quick ? 2 : 15;
  std::vector<double> coordinator, both;
  for (int round = 0; round < rounds; ++round) {
    const std::filesystem::path directory = settings.scratch / absl::StrCat("start-", round);
    const absl::Time begin = absl::Now();
    LEMO_ASSIGN_OR_RETURN(const std::unique_ptr<Service> service,
                          Service::Start(settings, directory / "coordinator"));
    LEMO_ASSIGN_OR_RETURN(const std::unique_ptr<Process> worker,
                          service->StartWorker(directory / "worker"));
    both.push_back(absl::ToDoubleSeconds(absl::Now() - begin));
    coordinator.push_back(absl::ToDoubleSeconds(service->start_time()));
    worker->Stop();
    service->Stop();
  }
  const Samples samples(both), first(coordinator);
  Figure figure{.what = "start of both daemons, one after the other",
                .unit = "s",
                .measured = samples.Quantile(1),
                .goal = 1,
                .bound = Figure::Bound::kAtMost,
                .remark = absl::StrCat("the slowest; ", samples.Summary(1e-3),
                                       " (ms), of which the coordinator ", first.Summary(1e-3)),
                .detail = samples.ToJson()};
  return std::vector<Figure>{std::move(figure)};
}

}  // namespace lemo::bench
