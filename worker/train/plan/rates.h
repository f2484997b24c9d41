// Rates of devices: which of them hold, and how the planner takes them.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/rates_file.h"
#include "google/protobuf/repeated_field.h"
#include "lemo/v1/plan.pb.h"
#include "planner/offers/offers.h"

namespace lemo::train {

using RatesList = google::protobuf::RepeatedPtrField<lemo::v1::DeviceRates>;

// The rates in a file. Errors as ReadMessageFile's.
absl::StatusOr<RatesList> ReadRatesFile(const std::filesystem::path& path);

// Puts `rates` in the place of those that the file has of the same device; others stay. Makes the
// file and its directory where they are missing.
absl::Status PutRates(const lemo::v1::DeviceRates& rates, const std::filesystem::path& path);

// Whether both are of one type, compute type, number of threads, and of ranks that share a machine.
bool SameDevice(const lemo::v1::DeviceRates& a, const lemo::v1::DeviceRates& b);

// Those of the device of `wanted`. Operators that another version of this program measured do not
// hold: its kernels were others.
const lemo::v1::DeviceRates* FindRates(const RatesList& list, const lemo::v1::DeviceRates& wanted,
                                       const std::string& version);

// Which rates these are: 8 digits of a hash of all that is in them.
std::string RatesName(const lemo::v1::DeviceRates& rates);

// Those of several ranks on one machine that divide the threads of `rates`, one a number of ranks.
RatesList SharedRates(const RatesList& list, const lemo::v1::DeviceRates& rates,
                      const std::string& version);

// Operators that this program does not know, and points that are no rates, are passed over: then
// they price nothing. Links are those of `rates` and of `shared`.
planner::DeviceRates PlannerRates(const lemo::v1::DeviceRates& rates, bool own_memory,
                                  const RatesList& shared = {});

// Where the rates are from, in words: "measured by operator on HOST at TIME ...".
std::string RatesInWords(const lemo::v1::DeviceRates& rates);

}  // namespace lemo::train
