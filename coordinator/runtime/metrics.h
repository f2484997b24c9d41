// Metrics of the coordinator: what the cluster commits is counted as it happens, the rest is asked
// for at each scrape.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "common/metrics.h"
#include "coordinator/runtime/cluster.h"
#include "coordinator/runtime/validator.h"
#include "coordinator/runtime/watch_hub.h"

namespace lemo::coordinator {

// All families that lemo-coordinator serves.
metrics::Families MetricFamilies();

// The series that tell of jobs, queue and workers.
void AddClusterSamples(const ClusterState& state, absl::Time now, metrics::Samples* samples);

// Thread-safe.
class Metrics final : public CommitObserver {
 public:
  Metrics();

  // From now on scrapes show these too. They outlive the server of the registry. `directory` is the
  // coordinator's own; `version` the program's.
  void Show(const Cluster* cluster, WatchHub* hub, Validator* validator,
            const std::string& directory, const std::string& version);

  void OnCommit(const std::vector<Effect>& effects, absl::Duration took,
                const absl::Status& stored) override;
  // A plan ended: `made`, `accepted`, `none` or `refused`.
  void OnOffers(const char* outcome);
  // A call of the API ended. `method` is `Service/Method`, `code` the canonical name.
  void OnCall(const std::string& method, const std::string& code, absl::Duration took, bool unary);

  const std::shared_ptr<metrics::Registry>& registry() const { return registry_; }

 private:
  void OnEvent(const JobRecord& record, const lemo::v1::JobEvent& event, absl::Time now);

  const std::shared_ptr<metrics::Registry> registry_;
};

}  // namespace lemo::coordinator
