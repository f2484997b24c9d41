#include "coordinator/core/planned_devices.h"

#include <algorithm>
#include <map>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace lemo::coordinator {
namespace {

// Whether the worker's own program measured that of a rank alone on one of its CPUs.
bool IsOfItsCpu(const lemo::v1::DeviceRates& rates, const lemo::v1::Hello& worker) {
  return rates.type() == "cpu" && rates.ranks() <= 1 && rates.products() > 0 &&
         rates.calibration().version() == worker.version() &&
         std::any_of(worker.devices().begin(), worker.devices().end(),
                     [&](const auto& device) { return device.threads() == rates.threads(); });
}

struct Calibrated {
  const lemo::v1::Hello* worker;
  const lemo::v1::DeviceRates* rates;
};

// Of the compute type that most workers were measured in, which others are not compared with.
std::vector<Calibrated> CalibratedWorkers(const std::vector<const lemo::v1::Hello*>& workers) {
  std::map<std::string, std::vector<Calibrated>> by_type;
  for (const lemo::v1::Hello* worker : workers) {
    for (const lemo::v1::DeviceRates& rates : worker->rates()) {
      if (IsOfItsCpu(rates, *worker)) by_type[rates.compute_type()].push_back({worker, &rates});
    }
  }
  std::vector<Calibrated> most;
  for (auto& [type, calibrated] : by_type) {
    if (calibrated.size() > most.size()) most = std::move(calibrated);
  }
  return most;
}

}  // namespace

lemo::v1::PlanOptions PlannedDevices(const std::vector<const lemo::v1::Hello*>& workers) {
  lemo::v1::PlanOptions options;
  lemo::v1::PlannedDevice& device = *options.mutable_device();
  for (const lemo::v1::Hello* worker : workers) {
    for (const lemo::v1::Device& of : worker->devices()) {
      if (of.kind() != lemo::v1::Device::CPU) continue;
      device.set_most_threads(std::max(device.most_threads(), of.threads()));
    }
  }
  const std::vector<Calibrated> calibrated = CalibratedWorkers(workers);
  if (calibrated.empty()) return options;
  const Calibrated& slowest = *std::min_element(calibrated.begin(), calibrated.end(),
                                                [](const Calibrated& a, const Calibrated& b) {
                                                  return a.rates->products() < b.rates->products();
                                                });
  *options.mutable_rates() = slowest.worker->rates();
  device.set_threads(slowest.rates->threads());
  device.set_source(absl::StrCat(slowest.worker->worker(), " (", slowest.worker->host(), ")"));
  if (calibrated.size() > 1) {
    absl::StrAppend(device.mutable_source(), ", the slowest of ", calibrated.size(),
                    " workers that are calibrated");
  }
  return options;
}

}  // namespace lemo::coordinator
