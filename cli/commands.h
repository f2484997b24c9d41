// Every group of commands adds itself to the program; `context` must outlive it.
#pragma once

#include "CLI/CLI.hpp"
#include "cli/context.h"

namespace lemo::cli {

void AddJobCommands(CLI::App& app, Context& context);
void AddPlanCommand(CLI::App& app, Context& context);
void AddSubmitCommand(CLI::App& job, Context& context);
void AddFetchCommands(CLI::App& job, Context& context);
void AddCompareCommand(CLI::App& job, Context& context);
void AddFileCommands(CLI::App& app, Context& context);
void AddModelCommands(CLI::App& app, Context& context);
void AddWorkerCommands(CLI::App& app, Context& context);
void AddAdminCommands(CLI::App& app, Context& context);
void AddUpCommand(CLI::App& app, Context& context);
void AddDoctorCommand(CLI::App& app, Context& context);
void AddCompletionCommand(CLI::App& app, Context& context);

// A subcommand whose work is `action`; `Flags` are what its options write into.
template <typename Flags>
CLI::App* AddCommand(CLI::App& parent, Context& context, const std::string& name,
                     const std::string& description, const std::shared_ptr<Flags>& flags,
                     absl::StatusOr<int> (*action)(Context&, const Flags&)) {
  CLI::App* command = parent.add_subcommand(name, description);
  command->callback([&context, flags, action] {
    context.action = [&context, flags, action] { return action(context, *flags); };
  });
  return command;
}

}  // namespace lemo::cli
