// `lemo-train calibrate`: what this device does of every operator of a step, for the planner.
//
// The trials are gone through again and again until the time is over, and the median of each is
// taken: so a neighbour that is busy for some seconds spoils some goes of all of them and not all
// of one. Work that a rate cannot show, calls and graphs, is measured with steps of a model so
// small that nothing else is left.
//
// In a gang the operators are measured on all ranks at once, since those of one machine have its
// memory together, and then the sums between them. What comes of it is kept beside what one rank
// does alone.
#pragma once

#include <filesystem>
#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "lemo/v1/plan.pb.h"
#include "worker/train/parallel/gang.h"

namespace lemo::train {

struct CalibrateOptions {
  std::string device = "auto";        // as RunSpec.device
  std::string compute_type = "auto";  // as RunSpec.model.compute_type
  // Of measuring operators; more of it makes the rates steadier. One go of everything is made in
  // any case, which takes some seconds.
  double seconds = 30;
  std::filesystem::path rates_file;  // empty: the default one (DefaultRatesFile)
  bool json = false;                 // print the DeviceRates in JSON
};

// Measures, and writes the rates into the file, on the rank that leads. `progress` is told what is
// being done, and the share of it that is over. The answer is what to print, with a newline; "" on
// other ranks.
absl::StatusOr<std::string> Calibrate(
    const CalibrateOptions& options, Gang& gang,
    const std::function<void(const std::string& what, double share)>& progress);

}  // namespace lemo::train
