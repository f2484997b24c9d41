// The program `lemo`: options, commands, exit codes.
#pragma once

#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "cli/context.h"

namespace lemo::cli {

// All commands; `context` must outlive it.
std::unique_ptr<CLI::App> MakeApp(Context& context);

// Runs one command line, without the program's name. Answers go to `out`, the rest to `err`;
// returns the exit code (cli/errors.h).
int Run(const std::vector<std::string>& args, std::ostream& out, std::ostream& err);

}  // namespace lemo::cli
