#include "worker/agent/calibration.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/message_json.h"
#include "common/rates_file.h"
#include "worker/agent/devices.h"

namespace lemo::agent {

lemo::v1::PlanOptions KnownRates() {
  lemo::v1::PlanOptions known;
  const std::filesystem::path file = DefaultRatesFile();
  if (file.empty()) return known;
  const absl::Status read = ReadMessageFile(file, kRatesBytesMax, &known);
  if (read.ok()) return known;
  if (!absl::IsNotFound(read)) {
    std::cerr << "lemo-worker: rates are not read: " << read.message() << "\n";
  }
  return {};
}

absl::Status CalibrateOnce(const AgentOptions& options) {
  if (options.cpu_devices == 0) return absl::OkStatus();
  const int threads = ThreadsOfCpu(options.cpu_devices);
  const lemo::v1::PlanOptions known = KnownRates();
  const auto& list = known.rates();
  const bool measured = std::any_of(list.begin(), list.end(), [&](const auto& rates) {
    return rates.type() == "cpu" && rates.threads() == threads && rates.ranks() <= 1 &&
           rates.calibration().version() == options.version;
  });
  if (measured) return absl::OkStatus();
  std::cout << "measuring what " << threads << " threads of this CPU do: half a minute"
            << std::endl;
  std::string program = options.train.string(), verb = "calibrate", device = "--device=cpu";
  char* const arguments[] = {program.data(), verb.data(), device.data(), nullptr};
  if (::access(program.c_str(), X_OK) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("--calibrate: cannot start ", program));
  }
  const pid_t self = ::getpid(), child = ::fork();
  if (child < 0) return absl::ErrnoToStatus(errno, "--calibrate: fork");
  if (child == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != self) ::_exit(1);
    // As a rank alone on the device will have it.
    ::setenv("OMP_NUM_THREADS", std::to_string(threads).c_str(), /*overwrite=*/0);
    ::execv(program.c_str(), arguments);
    ::_exit(1);
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) return absl::ErrnoToStatus(errno, "--calibrate: waitpid");
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat("--calibrate: ", program, " calibrate failed; nothing was measured"));
}

}  // namespace lemo::agent
