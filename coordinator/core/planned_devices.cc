#include "coordinator/core/planned_devices.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"

namespace lemo::coordinator {
namespace {

using lemo::v1::Device;
using lemo::v1::DeviceRates;
using lemo::v1::Hello;

struct Calibrated {
  const Hello* worker;
  const DeviceRates* rates;
};
using OfType = std::map<std::string, std::vector<Calibrated>>;  // of devices

bool IsCpuOf(const Device& device, const std::string& type) {
  return device.kind() == Device::CPU && (type.empty() || DeviceTypeOf(device) == type);
}

// The worker's device that its own program measured with a rank alone on it.
const Device* MeasuredDevice(const Hello& worker, const DeviceRates& rates,
                             const std::string& type) {
  if (rates.type() != "cpu" || rates.ranks() > 1 || !(rates.products() > 0) ||
      rates.calibration().version() != worker.version()) {
    return nullptr;
  }
  const auto found =
      std::find_if(worker.devices().begin(), worker.devices().end(), [&](const Device& device) {
        return IsCpuOf(device, type) && device.threads() == rates.threads();
      });
  return found == worker.devices().end() ? nullptr : &*found;
}

// Of the compute type that most workers were measured in, which others are not compared with.
OfType CalibratedWorkers(const std::vector<const Hello*>& workers, const std::string& type) {
  std::map<std::string, OfType> by_compute_type;
  std::map<std::string, int> count;
  for (const Hello* worker : workers) {
    for (const DeviceRates& rates : worker->rates()) {
      const Device* device = MeasuredDevice(*worker, rates, type);
      if (device == nullptr) continue;
      by_compute_type[rates.compute_type()][DeviceTypeOf(*device)].push_back({worker, &rates});
      ++count[rates.compute_type()];
    }
  }
  if (count.empty()) return {};
  const auto most = std::max_element(
      count.begin(), count.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  return std::move(by_compute_type[most->first]);
}

// Threads, rates and their source, of the slowest.
lemo::v1::PlannedDevice SlowestOf(const std::vector<Calibrated>& calibrated) {
  const Calibrated& slowest = *std::min_element(calibrated.begin(), calibrated.end(),
                                                [](const Calibrated& a, const Calibrated& b) {
                                                  return a.rates->products() < b.rates->products();
                                                });
  lemo::v1::PlannedDevice device;
  device.set_threads(slowest.rates->threads());
  *device.mutable_rates() = slowest.worker->rates();
  device.set_source(absl::StrCat(slowest.worker->worker(), " (", slowest.worker->host(), ")"));
  if (calibrated.size() > 1) {
    absl::StrAppend(device.mutable_source(), ", the slowest of ", calibrated.size(),
                    " workers that are calibrated");
  }
  return device;
}

}  // namespace

std::string DeviceTypeOf(const Device& device) {
  if (device.kind() != Device::CPU || device.threads() <= 0) return device.model();
  return absl::StrCat(device.model(), device.model().empty() ? "" : ", ", device.threads(),
                      device.threads() == 1 ? " thread" : " threads");
}

lemo::v1::PlanOptions PlannedDevices(const std::vector<const Hello*>& workers,
                                     const std::string& type) {
  lemo::v1::PlanOptions options;
  OfType calibrated = CalibratedWorkers(workers, type);
  if (calibrated.size() > 1) {
    std::set<std::string> others;
    for (const Hello* worker : workers) {
      for (const Device& device : worker->devices()) {
        const std::string of = DeviceTypeOf(device);
        if (IsCpuOf(device, type) && calibrated.count(of) == 0) others.insert(of);
      }
    }
    for (const auto& [name, of] : calibrated) {
      lemo::v1::PlannedDevice& device = *options.add_devices() = SlowestOf(of);
      device.set_type(name);
      device.set_most_threads(device.threads());
    }
    for (const std::string& other : others) {
      options.add_notes(absl::StrCat("no offer is for ",
                                     other.empty() ? "devices of no type" : other,
                                     ": no worker that has it is calibrated (lemo-worker "
                                     "--calibrate)"));
    }
    return options;
  }
  lemo::v1::PlannedDevice& device = *options.mutable_device();
  if (!calibrated.empty()) device = SlowestOf(calibrated.begin()->second);
  for (const Hello* worker : workers) {
    for (const Device& of : worker->devices()) {
      if (!IsCpuOf(of, type)) continue;
      device.set_most_threads(std::max(device.most_threads(), of.threads()));
    }
  }
  return options;
}

}  // namespace lemo::coordinator
