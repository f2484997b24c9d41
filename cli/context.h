// What every command is given.
#pragma once

#include <functional>
#include <memory>
#include <ostream>
#include <string>

#include "absl/status/statusor.h"
#include "cli/connection.h"
#include "cli/output.h"

namespace lemo::cli {

struct GlobalFlags {
  std::string coordinator;  // "" if not given
  OutputFormat output = OutputFormat::kTable;
  double timeout_seconds = 30;
};

// Not thread-safe. A command puts its work into `action`; what that returns is the exit code, or
// the error that main prints.
class Context {
 public:
  Context(std::ostream& out, std::ostream& err) : out_(out), err_(err) {}

  GlobalFlags flags;
  std::function<absl::StatusOr<int>()> action;

  // Answers go to out(), everything else (progress, hints, errors) to err().
  std::ostream& out() const { return out_; }
  std::ostream& err() const { return err_; }

  // Made when first asked for; INVALID_ARGUMENT when the address is none. Says nothing yet of
  // whether anybody listens there.
  absl::StatusOr<Connection*> connection();

  bool is_table() const { return flags.output == OutputFormat::kTable; }

  // `message` as JSON or YAML; not for tables.
  void Print(const google::protobuf::Message& message) const;

 private:
  std::ostream& out_;
  std::ostream& err_;
  std::unique_ptr<Connection> connection_;
};

// `name` with `prefix` ("jobs/") in front, unless it has it already. INVALID_ARGUMENT when what is
// left is empty or cannot be an id.
absl::StatusOr<std::string> ResourceName(const std::string& prefix, const std::string& name);

}  // namespace lemo::cli
