#include "cli/context.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cli/config.h"
#include "cli/format.h"
#include "common/status_macros.h"

namespace lemo::cli {

absl::StatusOr<Connection*> Context::connection() {
  if (!connection_) {
    LEMO_ASSIGN_OR_RETURN(const CoordinatorAddress found,
                          FindCoordinator(flags.coordinator, ConfigPath()));
    connection_ = std::make_unique<Connection>(found.address, absl::Seconds(flags.timeout_seconds));
  }
  return connection_.get();
}

void Context::Print(const google::protobuf::Message& message) const {
  PrintJson(ToJson(message), flags.output, out_);
}

absl::StatusOr<std::string> ResourceName(const std::string& prefix, const std::string& name) {
  const std::string id = absl::StartsWith(name, prefix) ? name.substr(prefix.size()) : name;
  if (id.empty() || id.find_first_of("/\n") != id.npos || Printable(id) != id) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", Printable(name), "\" is not a name; expected ", prefix, "ID or ID"));
  }
  return absl::StrCat(prefix, id);
}

}  // namespace lemo::cli
