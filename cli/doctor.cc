// lemo doctor: what is missing here, and the command that mends it.
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "cli/commands.h"
#include "cli/config.h"
#include "cli/errors.h"
#include "cli/format.h"
#include "cli/health.h"
#include "cli/programs.h"

namespace lemo::cli {
namespace {

namespace fs = std::filesystem;

// Checkpoints and a published adapter of a small model fit.
constexpr int64_t kLittleDisk = int64_t{2} << 30;

struct NoFlags {};

struct Finding {
  std::string what;
  bool good = false;
  std::string found;
  std::string mend;  // a command or a sentence; empty when good
};

Finding CheckAddress(CoordinatorAddress* address, Context& context) {
  const absl::StatusOr<CoordinatorAddress> found =
      FindCoordinator(context.flags.coordinator, ConfigPath());
  if (!found.ok()) {
    return {"address", false, std::string(found.status().message()),
            "give --coordinator HOST:PORT, or mend what names it"};
  }
  *address = *found;
  return {"address", true, absl::StrCat(found->address, " (", found->source, ")"), ""};
}

void CheckService(const Connection& connection, std::vector<Finding>* findings) {
  Health health = Health::kNotServing;
  const grpc::Status status = CheckHealth(connection.channel(), connection.timeout(), &health);
  if (!status.ok()) {
    findings->push_back(
        {"coordinator", false,
         absl::StrCat("nobody answers at ", connection.address(), ": ", Reason(status)),
         "lemo up"});
    return;
  }
  if (health != Health::kServing) {
    findings->push_back({"coordinator", false, "it answers, but does not serve: it starts or stops",
                         "wait a moment, then: lemo doctor"});
    return;
  }
  findings->push_back({"coordinator", true, "serving", ""});
  lemo::v1::ListWorkersResponse workers;
  const absl::Status listed = connection.Call("list workers", [&](grpc::ClientContext* rpc) {
    return connection.cluster().ListWorkers(rpc, {}, &workers);
  });
  if (!listed.ok()) {
    findings->push_back({"workers", false, std::string(listed.message()), "lemo version"});
    return;
  }
  int ready = 0, devices = 0;
  for (const lemo::v1::Worker& worker : workers.workers()) {
    if (worker.state() != lemo::v1::Worker::READY) continue;
    ++ready;
    devices += worker.devices_size();
  }
  const std::string counts = absl::StrCat(ready, " of ", workers.workers_size(), " ready, ",
                                          devices, devices == 1 ? " device" : " devices");
  if (ready > 0) {
    findings->push_back({"workers", true, counts, ""});
  } else if (workers.workers_size() > 0) {
    findings->push_back(
        {"workers", false, counts, "lemo worker list; lemo worker uncordon WORKER"});
  } else {
    findings->push_back(
        {"workers", false, "none is known",
         absl::StrCat("lemo-worker --coordinator ", connection.address(), " --dir DIR")});
  }
}

Finding CheckDisk() {
  std::error_code error;
  const fs::space_info space = fs::space(".", error);
  if (error) return {"disk", false, error.message(), "go to a directory that exists"};
  const auto available = static_cast<int64_t>(space.available);
  const std::string text = absl::StrCat(HumanBytes(available), " free in this directory");
  if (available >= kLittleDisk) return {"disk", true, text, ""};
  return {"disk", false, text, "make room, or fetch to another disk: lemo job fetch JOB --out DIR"};
}

Finding CheckProgram(const std::string& name) {
  const std::optional<fs::path> program = FindProgram(name);
  if (program) return {name, true, program->string(), ""};
  return {name, false, "not beside this program, nor in its build tree", "./dev build"};
}

// Only workers need it, and only for jobs of several ranks: to be without is no fault.
Finding CheckMpirun() {
  const char* path = ::getenv("PATH");
  for (const std::string& folder :
       std::vector<std::string>(absl::StrSplit(path == nullptr ? "" : path, ':'))) {
    const std::string program = folder + "/mpirun";
    if (::access(program.c_str(), X_OK) == 0) return {"mpirun", true, program, ""};
  }
  return {"mpirun", true,
          "not here; a worker needs it for jobs of several ranks: apt-get install openmpi-bin", ""};
}

absl::StatusOr<int> Doctor(Context& context, const NoFlags&) {
  std::vector<Finding> findings;
  CoordinatorAddress address;
  findings.push_back(CheckAddress(&address, context));
  if (!address.address.empty()) {
    // Here a quick answer is worth more than a patient one.
    CheckService(
        Connection(address.address, absl::Seconds(std::min(context.flags.timeout_seconds, 5.0))),
        &findings);
  }
  for (const char* name : {"lemo-coordinator", "lemo-worker", "lemo-train"}) {
    findings.push_back(CheckProgram(name));
  }
  findings.push_back(CheckMpirun());
  findings.push_back(CheckDisk());

  bool good = true;
  nlohmann::ordered_json checks = nlohmann::ordered_json::array();
  Details table;
  for (const Finding& finding : findings) {
    good &= finding.good;
    checks.push_back({{"check", finding.what},
                      {"good", finding.good},
                      {"found", finding.found},
                      {"mend", finding.mend}});
    table.Add(absl::StrCat(finding.good ? "ok  " : "NO  ", finding.what),
              finding.mend.empty() ? finding.found
                                   : absl::StrCat(finding.found, "\nto do: ", finding.mend));
  }
  if (context.is_table()) {
    context.out() << table.ToString();
  } else {
    PrintJson({{"good", good}, {"checks", std::move(checks)}}, context.flags.output, context.out());
  }
  return good ? kExitOk : kExitUserFault;
}

}  // namespace

void AddDoctorCommand(CLI::App& app, Context& context) {
  AddCommand(app, context, "doctor",
             "Look what is missing here, and name the command that mends it",
             std::make_shared<NoFlags>(), &Doctor);
}

}  // namespace lemo::cli
