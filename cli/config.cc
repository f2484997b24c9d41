#include "cli/config.h"

#include <cstdlib>
#include <optional>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "cli/yaml_json.h"
#include "common/files.h"
#include "common/status_macros.h"
#include "common/violations.h"

namespace lemo::cli {
namespace {

constexpr int64_t kMaxConfigBytes = 1 << 16;

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

// The value of `coordinator:`, "" when the file or the key is not there.
absl::StatusOr<std::string> FromFile(const std::filesystem::path& config) {
  if (config.empty()) return "";
  absl::StatusOr<std::string> text = ReadFile(config, kMaxConfigBytes);
  if (absl::IsNotFound(text.status())) return "";
  if (!text.ok()) return text.status();
  JsonFault fault;
  const std::optional<LocatedJson> root = ParseYaml(*text, &fault);
  if (!root) {
    return absl::InvalidArgumentError(
        absl::StrCat(config.string(), ":", fault.line, ": ", fault.reason));
  }
  std::string address;
  Violations violations;
  auto fault_at = [&](int64_t line, std::string reason) {
    violations.Add(Violation{.reason = std::move(reason), .file = config.string(), .line = line});
  };
  if (!root->is_null() && root->kind != LocatedJson::Kind::kObject) {
    fault_at(root->line, "expected `coordinator: HOST:PORT`");
  }
  for (const LocatedJson& member : root->children) {
    if (member.key != "coordinator") {
      fault_at(member.line, absl::StrCat("unknown key ", member.key, "; known here: coordinator"));
    } else if (!member.scalar.is_string()) {
      fault_at(member.line, "coordinator: expected HOST:PORT");
    } else {
      address = member.scalar.get<std::string>();
    }
  }
  LEMO_RETURN_IF_ERROR(violations.ToStatus());
  return address;
}

}  // namespace

std::filesystem::path ConfigPath() {
  if (const std::string xdg = Environment("XDG_CONFIG_HOME"); !xdg.empty()) {
    return std::filesystem::path(xdg) / "lemo/config.yaml";
  }
  const std::string home = Environment("HOME");
  return home.empty() ? std::filesystem::path()
                      : std::filesystem::path(home) / ".config/lemo/config.yaml";
}

absl::StatusOr<CoordinatorAddress> FindCoordinator(const std::string& flag,
                                                   const std::filesystem::path& config) {
  CoordinatorAddress found{flag, "--coordinator"};
  if (found.address.empty()) found = {Environment("LEMO_COORDINATOR"), "LEMO_COORDINATOR"};
  if (found.address.empty()) {
    LEMO_ASSIGN_OR_RETURN(found.address, FromFile(config));
    found.source = config.string();
  }
  if (found.address.empty()) found = {kDefaultCoordinator, "default"};
  const size_t colon = found.address.rfind(':');
  uint32_t port = 0;
  if (colon == found.address.npos || colon == 0 ||
      !absl::SimpleAtoi(found.address.substr(colon + 1), &port) || port == 0 || port > 65535) {
    return absl::InvalidArgumentError(absl::StrCat("the coordinator's address \"", found.address,
                                                   "\" (from ", found.source,
                                                   ") is not HOST:PORT, such as 127.0.0.1:7410"));
  }
  return found;
}

}  // namespace lemo::cli
