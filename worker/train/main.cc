// lemo-train: one process a rank. Exit codes: 0 success, 2 the user's fault, 3 out of memory, 4
// ours; a run stopped by a signal leaves with 128 + the signal's number, as shells count.
#include <c10/util/Exception.h>
#include <unistd.h>

#include <iostream>
#include <new>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "worker/train/calibrate/calibrate.h"
#include "worker/train/data/preview.h"
#include "worker/train/loop/evaluate_only.h"
#include "worker/train/loop/inputs.h"
#include "worker/train/loop/plan_run.h"
#include "worker/train/loop/publisher.h"
#include "worker/train/loop/signals.h"
#include "worker/train/loop/trainer.h"
#include "worker/train/memory/counting_allocator.h"
#include "worker/train/parallel/gang.h"
#include "worker/train/parallel/status_text.h"
#include "worker/train/report/event_sink.h"
#include "worker/train/spec/run_options.h"
#include "worker/train/spec/spec.h"

namespace lemo::train {
namespace {

constexpr int kUserFault = 2, kOutOfMemory = 3, kOurFault = 4;

int ExitCode(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return 0;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kOutOfRange:
      return kUserFault;
    case absl::StatusCode::kResourceExhausted:
      return kOutOfMemory;
    case absl::StatusCode::kCancelled:
      return 128 + StopSignal();
    default:
      return kOurFault;
  }
}

// libtorch reports by exceptions; this is the one place where they end.
template <typename Function>
absl::Status Guarded(const Function& function) {
  try {
    return function();
  } catch (const GangError& error) {
    return error.status();
  } catch (const MemoryLimitError& error) {
    return absl::ResourceExhaustedError(error.what());
  } catch (const c10::OutOfMemoryError& error) {
    return absl::ResourceExhaustedError(error.what_without_backtrace());
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("the host has no more memory");
  } catch (const c10::Error& error) {
    const std::string what = error.what_without_backtrace();
    // What libtorch's CPU allocator says when malloc fails.
    if (absl::StrContains(what, "DefaultCPUAllocator")) return absl::ResourceExhaustedError(what);
    return absl::InternalError(what);
  } catch (const std::exception& error) {
    return absl::InternalError(error.what());
  }
}

absl::Status Preview(const RunOptions& options, const lemo::v1::RunSpec& spec,
                     Violations* violations) {
  Inputs inputs;
  if (absl::Status status = Validate(spec, &inputs, violations); !status.ok()) return status;
  const absl::StatusOr<std::string> text =
      PreviewRows(*inputs.train, *inputs.text,
                  {.rows = options.preview_rows, .colour = ::isatty(STDOUT_FILENO) != 0});
  if (!text.ok()) return text.status();
  std::cout << *text;
  return absl::OkStatus();
}

absl::Status CheckOnly(const lemo::v1::RunSpec& spec, Violations* violations) {
  Inputs inputs;
  if (absl::Status status = Validate(spec, &inputs, violations); !status.ok()) return status;
  std::cout << "valid: " << inputs.train->counts().ToString() << "\n";
  return absl::OkStatus();
}

absl::Status Plan(const RunOptions& options, const lemo::v1::RunSpec& spec,
                  Violations* violations) {
  const PlanRunOptions plan{.memory_bytes_max = options.plan_memory_bytes,
                            .options = LoadPlanOptions(options, violations),
                            .json = options.json};
  if (absl::Status status = violations->ToStatus(); !status.ok()) return status;
  const absl::StatusOr<std::string> offers = PlanRun(spec, plan, violations);
  if (!offers.ok()) return offers.status();
  // The whole of it or a failure: whoever reads it would take half for all.
  std::cout << *offers << std::flush;
  return std::cout ? absl::OkStatus() : absl::InternalError("cannot write the offers");
}

absl::Status Measure(const RunOptions& options, Gang& gang) {
  // One line that is drawn anew, for a person who waits.
  const bool drawn = gang.leads() && ::isatty(STDERR_FILENO) != 0;
  const auto progress = [drawn](const std::string& what, double share) {
    if (drawn) std::cerr << absl::StrFormat("\r\x1b[Kmeasuring %s: %.0f %%", what, 100 * share);
  };
  const absl::StatusOr<std::string> text =
      Calibrate({.device = options.device.empty() ? "auto" : options.device,
                 .compute_type = options.compute_type,
                 .seconds = options.calibrate_seconds,
                 .rates_file = options.rates_file,
                 .json = options.json},
                gang, progress);
  if (drawn) std::cerr << "\r\x1b[K";
  if (!text.ok()) return text.status();
  std::cout << *text << std::flush;
  return std::cout ? absl::OkStatus() : absl::InternalError("cannot write the rates");
}

absl::Status Execute(const RunOptions& options, const lemo::v1::RunSpec& spec, Gang& gang,
                     EventSink& sink, Violations* violations) {
  switch (options.mode) {
    case RunOptions::Mode::kTrain:
      return Train(options, spec, gang, sink, violations);
    case RunOptions::Mode::kValidate:
      return CheckOnly(spec, violations);
    case RunOptions::Mode::kPrintSpec:
      std::cout << RunSpecToJson(spec) << "\n";
      return absl::OkStatus();
    case RunOptions::Mode::kEvalOnly:
      return EvaluateOnly(spec, sink, violations);
    case RunOptions::Mode::kPlan:
      return Plan(options, spec, violations);
    case RunOptions::Mode::kPreviewData:
      return Preview(options, spec, violations);
    case RunOptions::Mode::kCalibrate:
      return Measure(options, gang);
  }
  return absl::InternalError("unknown mode");
}

int Main(const std::vector<std::string>& args) {
  const CommandLine command = ParseCommandLine(args, kLemoVersion);
  if (command.exit) {
    (command.exit_code == 0 ? std::cout : std::cerr) << command.text;
    return command.exit_code;
  }
  InstallCountingAllocator();
  CatchStopSignals();
  const bool trains = command.options.mode == RunOptions::Mode::kTrain;
  const bool calibrates = command.options.mode == RunOptions::Mode::kCalibrate;
  absl::StatusOr<std::unique_ptr<Gang>> gang = trains || calibrates ? Gang::Join() : Gang::Alone();
  if (!gang.ok()) {
    std::cerr << gang.status().message() << "\n";
    return kOurFault;
  }
  // Faults of a run that makes no events of its own belong on the error stream.
  const bool quiet = !trains && command.options.mode != RunOptions::Mode::kEvalOnly;
  absl::StatusOr<std::unique_ptr<EventSink>> sink =
      (*gang)->leads()
          ? MakeEventSink(command.options.events, quiet ? STDERR_FILENO : STDOUT_FILENO)
          : MakeNullSink();
  if (!sink.ok()) {
    std::cerr << sink.status().message() << "\n";
    (*gang)->Leave(sink.status());
    return kUserFault;
  }
  Violations violations;
  const lemo::v1::RunSpec spec =
      calibrates ? lemo::v1::RunSpec() : LoadRunSpec(command.options, &violations);
  absl::Status status = violations.ToStatus();
  if (status.ok()) {
    status = Guarded([&] { return Execute(command.options, spec, **gang, **sink, &violations); });
  }
  const int code = ExitCode(status);
  if (code != 0 && status.code() != absl::StatusCode::kCancelled) {
    (*sink)->Emit(MakeErrorEvent(std::string(status.message()), violations, code));
    if (!(*gang)->leads() && !IsFromAnotherRank(status)) {
      std::cerr << "rank " << (*gang)->rank() << ": " << status.message() << std::endl;
    }
  }
  // Being stopped is an orderly end.
  (*gang)->Leave(status.code() == absl::StatusCode::kCancelled ? absl::OkStatus() : status);
  return code;
}

}  // namespace
}  // namespace lemo::train

int main(int argc, char** argv) {
  return lemo::train::Main(std::vector<std::string>(argv + 1, argv + argc));
}
