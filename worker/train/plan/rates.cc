#include "worker/train/plan/rates.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/files.h"
#include "common/format.h"
#include "common/message_json.h"
#include "common/status_macros.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"

namespace lemo::train {
namespace {

namespace fs = std::filesystem;

constexpr size_t kNameDigits = 8;

bool IsRate(double value) { return value > 0 && std::isfinite(value); }
double RateOrNone(double value) { return IsRate(value) ? value : 0; }

planner::OperatorRates OperatorsOf(const lemo::v1::Calibration& calibration) {
  planner::OperatorRates rates;
  for (const lemo::v1::OperatorRates& of : calibration.operators()) {
    const std::optional<planner::Operator> op = planner::OperatorNamed(of.name());
    if (!op) continue;
    std::vector<planner::RatePoint> points;
    for (const lemo::v1::RatePoint& point : of.points()) {
      const bool rises = points.empty() || point.size() > points.back().size;
      if (IsRate(point.size()) && IsRate(point.rate()) && rises) {
        points.push_back({point.size(), point.rate()});
      }
    }
    rates.Set(*op, of.width(), points);
  }
  return rates;
}

// By rising ranks; of one number those that came first.
void AddLinks(const lemo::v1::Calibration& calibration, std::vector<planner::LinkRate>* links) {
  for (const lemo::v1::LinkRate& link : calibration.links()) {
    if (link.ranks() < 2 || !IsRate(link.bytes_per_second())) continue;
    const auto place = std::find_if(links->begin(), links->end(), [&link](const auto& other) {
      return other.ranks >= link.ranks();
    });
    if (place != links->end() && place->ranks == link.ranks()) continue;
    links->insert(place, {.ranks = link.ranks(),
                          .latency_seconds = RateOrNone(link.latency_seconds()),
                          .bytes_per_second = link.bytes_per_second()});
  }
}

}  // namespace

absl::StatusOr<RatesList> ReadRatesFile(const fs::path& path) {
  lemo::v1::PlanOptions options;
  LEMO_RETURN_IF_ERROR(ReadMessageFile(path, kRatesBytesMax, &options));
  return options.rates();
}

absl::Status PutRates(const lemo::v1::DeviceRates& rates, const fs::path& path) {
  lemo::v1::PlanOptions options;
  absl::StatusOr<RatesList> before = ReadRatesFile(path);
  if (before.ok()) {
    *options.mutable_rates() = *std::move(before);
  } else if (!absl::IsNotFound(before.status())) {
    return before.status();  // not ours to write over
  }
  auto* list = options.mutable_rates();
  list->erase(std::remove_if(list->begin(), list->end(),
                             [&](const auto& other) { return SameDevice(other, rates); }),
              list->end());
  *list->Add() = rates;
  if (path.has_parent_path()) LEMO_RETURN_IF_ERROR(MakeDirectories(path.parent_path()));
  return WriteFileAtomic(path, MessageToJson(options, {}).dump(1) + "\n");
}

bool SameDevice(const lemo::v1::DeviceRates& a, const lemo::v1::DeviceRates& b) {
  return a.type() == b.type() && a.compute_type() == b.compute_type() &&
         a.threads() == b.threads() && std::max(1, a.ranks()) == std::max(1, b.ranks());
}

const lemo::v1::DeviceRates* FindRates(const RatesList& list, const lemo::v1::DeviceRates& wanted,
                                       const std::string& version) {
  for (const lemo::v1::DeviceRates& rates : list) {
    if (!SameDevice(rates, wanted) || !IsRate(rates.products()) || !IsRate(rates.attention())) {
      continue;
    }
    if (!rates.has_calibration() || rates.calibration().version() == version) return &rates;
  }
  return nullptr;
}

std::string RatesName(const lemo::v1::DeviceRates& rates) {
  std::string bytes;
  {
    google::protobuf::io::StringOutputStream stream(&bytes);
    google::protobuf::io::CodedOutputStream coded(&stream);
    coded.SetSerializationDeterministic(true);
    rates.SerializeToCodedStream(&coded);
  }
  return Sha256Hex(bytes).substr(0, kNameDigits);
}

RatesList SharedRates(const RatesList& list, const lemo::v1::DeviceRates& rates,
                      const std::string& version) {
  RatesList shared;
  lemo::v1::DeviceRates wanted = rates;
  for (const lemo::v1::DeviceRates& other : list) {
    if (other.ranks() < 2 || !other.has_calibration()) continue;
    wanted.set_ranks(other.ranks());
    wanted.set_threads(std::max(1, rates.threads() / other.ranks()));
    if (FindRates(list, wanted, version) == &other) *shared.Add() = other;
  }
  return shared;
}

planner::DeviceRates PlannerRates(const lemo::v1::DeviceRates& rates, bool own_memory,
                                  const RatesList& shared) {
  planner::DeviceRates device{.type = rates.type(),
                              .compute = {rates.products(), rates.attention()},
                              .own_memory = own_memory,
                              .threads = std::max(1, rates.threads()),
                              .packs_keys = rates.packs_keys()};
  if (!rates.has_calibration()) return device;
  device.measured = RatesName(rates);
  device.operators = OperatorsOf(rates.calibration());
  device.layer_seconds = RateOrNone(rates.calibration().layer_seconds());
  device.step_seconds = RateOrNone(rates.calibration().step_seconds());
  device.copy_bytes_per_second = RateOrNone(rates.calibration().copy_bytes_per_second());
  AddLinks(rates.calibration(), &device.links);
  for (const lemo::v1::DeviceRates& other : shared) {
    const lemo::v1::Calibration& calibration = other.calibration();
    device.measured += RatesName(other);
    device.shared.push_back({.ranks = other.ranks(),
                             .compute = {other.products(), other.attention()},
                             .operators = OperatorsOf(calibration),
                             .layer_seconds = RateOrNone(calibration.layer_seconds()),
                             .step_seconds = RateOrNone(calibration.step_seconds())});
    AddLinks(calibration, &device.links);
  }
  return device;
}

std::string RatesInWords(const lemo::v1::DeviceRates& rates) {
  const std::string device =
      absl::StrCat(rates.type(), ", ", rates.compute_type(), ", ", rates.threads(), " thread",
                   rates.threads() == 1 ? "" : "s",
                   rates.ranks() > 1 ? absl::StrCat(", ", rates.ranks(), " at once") : "");
  if (!rates.has_calibration()) {
    return absl::StrCat(device,
                        ": two kernels were timed; `lemo-train calibrate` measures every "
                        "operator");
  }
  const lemo::v1::Calibration& calibration = rates.calibration();
  return absl::StrFormat(
      "%s: measured by operator on %s at %s by lemo %s (%s, at a load of %.1f)", device,
      calibration.host(), UtcTime(static_cast<double>(calibration.time().seconds())),
      calibration.version(), HumanDuration(calibration.seconds()), calibration.load());
}

}  // namespace lemo::train
