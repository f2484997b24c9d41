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
#include "worker/train/data/preview.h"
#include "worker/train/loop/publisher.h"
#include "worker/train/loop/signals.h"
#include "worker/train/loop/trainer.h"
#include "worker/train/memory/counting_allocator.h"
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

absl::Status Execute(const RunOptions& options, const lemo::v1::RunSpec& spec, EventSink& sink,
                     Violations* violations) {
  switch (options.mode) {
    case RunOptions::Mode::kTrain:
      return Train(options, spec, sink, violations);
    case RunOptions::Mode::kValidate:
      return CheckOnly(spec, violations);
    case RunOptions::Mode::kPrintSpec:
      std::cout << RunSpecToJson(spec) << "\n";
      return absl::OkStatus();
    case RunOptions::Mode::kEvalOnly:
      return EvaluateOnly(spec, sink, violations);
    case RunOptions::Mode::kPreviewData:
      return Preview(options, spec, violations);
  }
  return absl::InternalError("unknown mode");
}

int Main(const std::vector<std::string>& args) {
  const CommandLine command = ParseCommandLine(args, kLemoVersion);
  if (command.exit) {
    (command.exit_code == 0 ? std::cout : std::cerr) << command.text;
    return command.exit_code;
  }
  // Faults of a run that makes no events of its own belong on the error stream.
  const bool quiet = command.options.mode != RunOptions::Mode::kTrain &&
                     command.options.mode != RunOptions::Mode::kEvalOnly;
  absl::StatusOr<std::unique_ptr<EventSink>> sink =
      MakeEventSink(command.options.events, quiet ? STDERR_FILENO : STDOUT_FILENO);
  if (!sink.ok()) {
    std::cerr << sink.status().message() << "\n";
    return kUserFault;
  }
  InstallCountingAllocator();
  CatchStopSignals();
  Violations violations;
  const lemo::v1::RunSpec spec = LoadRunSpec(command.options, &violations);
  absl::Status status = violations.ToStatus();
  if (status.ok()) {
    status = Guarded([&] { return Execute(command.options, spec, **sink, &violations); });
  }
  const int code = ExitCode(status);
  if (code != 0 && status.code() != absl::StatusCode::kCancelled) {
    (*sink)->Emit(MakeErrorEvent(std::string(status.message()), violations, code));
  }
  return code;
}

}  // namespace
}  // namespace lemo::train

int main(int argc, char** argv) {
  return lemo::train::Main(std::vector<std::string>(argv + 1, argv + argc));
}
