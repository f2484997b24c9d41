// The command line of lemo-train. What a run is stands in its spec; flags only say which spec, what
// to do with it and where the output goes, so the list of flags is frozen by a test.
#pragma once

#include <string>
#include <vector>

#include "common/violations.h"
#include "lemo/v1/plan.pb.h"
#include "lemo/v1/run_spec.pb.h"

namespace lemo::train {

struct RunOptions {
  enum class Mode {
    kTrain,
    kValidate,     // name every fault of spec, model and data, and stop
    kPrintSpec,    // print the effective spec and stop
    kEvalOnly,     // evaluate the model as it is and stop
    kPlan,         // print what the run could be run as and stop
    kPreviewData,  // print rows with trained tokens marked and stop
    kCalibrate,    // measure the device for the planner and stop; there is no spec
  };
  Mode mode = Mode::kTrain;
  std::string spec_file;
  std::vector<std::string> overrides;  // `a.b=c`, in the order given
  int preview_rows = 0;                // with kPreviewData, at least 1
  int64_t plan_memory_bytes = 0;       // with kPlan: of one rank at most; 0 for no bound
  std::string plan_options;            // with kPlan: file of a PlanOptions; "" for none
  bool json = false;                   // with kPlan and kCalibrate: a message instead of a table
  std::string resume;                  // "" (start anew), "auto", or a checkpoint directory
  std::string device;                  // "" leaves the spec's; with kCalibrate auto
  std::string events = "pretty";       // as MakeEventSink takes it
  // With kCalibrate: where rates are kept ("": the default file), for how long operators are
  // measured, and in which type.
  std::string rates_file;
  double calibrate_seconds = 30;
  std::string compute_type = "auto";
};

// Either options to run with, or a text to print and a code to leave with (`exit` is set): --help
// and
// --version with 0 for standard output, a mistake with 2 for standard error.
struct CommandLine {
  RunOptions options;
  bool exit = false;
  int exit_code = 0;
  std::string text;
};

// `args` without the program's name. `version` is what --version prints.
CommandLine ParseCommandLine(const std::vector<std::string>& args, const std::string& version);

// Long names of all flags of a run, sorted; and of `calibrate`.
std::vector<std::string> CommandLineFlags();
std::vector<std::string> CalibrateFlags();

// The effective spec: reads `options.spec_file` (1 MiB at most), applies overrides and --device,
// fills defaults, validates for the mode. Look at `violations` before using it; a file that cannot
// be read is one of them.
lemo::v1::RunSpec LoadRunSpec(const RunOptions& options, Violations* violations);

// What `options.plan_options` holds (1 MiB at most); empty without one. Faults are violations.
lemo::v1::PlanOptions LoadPlanOptions(const RunOptions& options, Violations* violations);

}  // namespace lemo::train
