#include "cli/app.h"

#include <algorithm>
#include <map>

#include "cli/commands.h"
#include "cli/errors.h"
#include "cli/format.h"

namespace lemo::cli {
namespace {

constexpr char kDescription[] =
    "Fine-tunes language models as a service: submits jobs, watches "
    "them, fetches their results.";

constexpr char kFooter[] = R"(
A first job, on this machine:
  lemo up                                     (in another terminal)
  lemo plan examples/run.json                 (what it takes; --offer of submit takes one)
  lemo job submit examples/run.json --watch
  lemo job list
  lemo job fetch JOB

Exit codes: 0 success, 1 the job failed, 2 something in the request must change, 3 the job was
cancelled, 4 the service cannot be reached or has a fault, 130 stopped by Ctrl-C.

The coordinator is --coordinator, else LEMO_COORDINATOR, else `coordinator: HOST:PORT` in
~/.config/lemo/config.yaml, else 127.0.0.1:7410.)";

void AddVersionCommand(CLI::App& app, Context& context) {
  app.add_subcommand("version", "Print the version")->callback([&context] {
    context.action = [&context]() -> absl::StatusOr<int> {
      if (context.is_table()) {
        context.out() << "lemo " << LEMO_VERSION << "\n";
      } else {
        PrintJson({{"version", LEMO_VERSION}}, context.flags.output, context.out());
      }
      return kExitOk;
    };
  });
}

}  // namespace

std::unique_ptr<CLI::App> MakeApp(Context& context) {
  auto app = std::make_unique<CLI::App>(kDescription, "lemo");
  // Global options may stand behind the command too.
  app->fallthrough();
  app->require_subcommand(1);
  app->set_help_flag("-h,--help", "Print this text, and stop");
  app->add_option("--coordinator", context.flags.coordinator, "Address of the coordinator")
      ->type_name("HOST:PORT");
  const std::map<std::string, OutputFormat> formats = {{"table", OutputFormat::kTable},
                                                       {"json", OutputFormat::kJson},
                                                       {"yaml", OutputFormat::kYaml}};
  app->add_option("-o,--output", context.flags.output, "How answers are printed")
      ->transform(CLI::CheckedTransformer(formats).description(""))
      ->type_name("table|json|yaml");
  app->add_option("--timeout", context.flags.timeout_seconds,
                  "Longest wait for one answer, in seconds [30]")
      ->check(CLI::Range(0.1, 86400.0).description(""))
      ->type_name("SECONDS");
  AddPlanCommand(*app, context);
  AddJobCommands(*app, context);
  AddFileCommands(*app, context);
  AddModelCommands(*app, context);
  AddWorkerCommands(*app, context);
  AddAdminCommands(*app, context);
  AddUpCommand(*app, context);
  AddDoctorCommand(*app, context);
  AddCompletionCommand(*app, context);
  AddVersionCommand(*app, context);
  app->footer(kFooter);  // last, since commands would inherit it
  return app;
}

int Run(const std::vector<std::string>& args, std::ostream& out, std::ostream& err) {
  Context context(out, err);
  const std::unique_ptr<CLI::App> app = MakeApp(context);
  try {
    std::vector<std::string> reversed(args.rbegin(), args.rend());  // as CLI11 wants them
    app->parse(std::move(reversed));
  } catch (const CLI::ParseError& error) {
    return app->exit(error, out, err) == 0 ? kExitOk : kExitUserFault;
  }
  const absl::StatusOr<int> code = context.action();
  if (code.ok()) return *code;
  const std::string message(code.status().message());
  // A list of faults stands by itself; each of its lines says where.
  err << "error: " << Printable(message) << "\n";
  return ExitCode(code.status());
}

}  // namespace lemo::cli
