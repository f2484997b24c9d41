#include "worker/train/spec/run_options.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <sstream>
#include <utility>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/located_json.h"
#include "common/message_json.h"
#include "worker/train/spec/spec.h"

namespace lemo::train {
namespace {

constexpr int64_t kMaxSpecBytes = int64_t{1} << 20;

constexpr char kDescription[] =
    "Fine-tunes a Hugging Face model directory on local files, as a run spec (JSON) says.";

constexpr char kCalibrateName[] = "calibrate";
constexpr char kCalibrateDescription[] =
    "Measures what this device does of every operator of a training step, so that plans foretell "
    "times by it. Takes --seconds; leave the machine alone meanwhile.";
constexpr char kCalibrateFooter[] = R"(
Plans made here, and the results of runs, use what is measured; a coordinator uses rates.json of its
directory:
  lemo-train calibrate
  lemo-train calibrate --rates /var/lib/lemo/rates.json
  mpirun -n 2 lemo-train calibrate     for gangs: so many ranks at once, and the sums between them)";

constexpr char kFooter[] = R"(
Examples:
  lemo-train run.json
  lemo-train run.json --set train.learning_rate=5e-5 --set output.dir=out/second
  lemo-train run.json --set tuner.lora.targets=all-linear --print-spec
  lemo-train run.json --preview-data 3
  lemo-train run.json --resume auto
  lemo-train calibrate

A small run.json:
  {"model": {"path": "examples/models/novelist-3m"},
   "data": {"train": [{"path": "examples/data/almayer-train.txt"}],
            "eval": [{"path": "examples/data/almayer-eval.txt"}], "max_length": 2048},
   "tuner": {"lora": {"rank": 8}},
   "train": {"steps": 40, "learning_rate": 1e-3},
   "output": {"dir": "out/almayer"}}

Exit codes: 0 success, 2 a fault in the input, 3 out of memory, 4 a fault of lemo-train.)";

// What the flags write into before it becomes RunOptions.
struct Flags {
  RunOptions options;
  std::string positional_spec;
  std::string flag_spec;
  bool validate = false;
  bool print_spec = false;
  bool eval_only = false;
  bool plan = false;
};

std::unique_ptr<CLI::App> MakeApp(const std::string& version, Flags* flags) {
  auto app = std::make_unique<CLI::App>(kDescription, "lemo-train");
  app->footer(kFooter);
  app->allow_extras();  // reported below, with the nearest known flag
  app->add_option("run.json", flags->positional_spec, "The run spec")->type_name("");
  app->add_option("--spec", flags->flag_spec, "The run spec, as a flag")->type_name("FILE");
  app->add_option("--set", flags->options.overrides,
                  "Replace one field of the spec; a.b=null clears it. May be repeated")
      ->type_name("a.b=c")
      ->allow_extra_args(false);
  app->add_flag("--validate", flags->validate,
                "Name every fault of spec, model and data, and stop");
  app->add_flag("--print-spec", flags->print_spec,
                "Print the spec with every default filled in, and stop");
  app->add_flag("--eval-only", flags->eval_only, "Evaluate the model on data.eval, and stop");
  app->add_flag("--plan", flags->plan,
                "Print what the run could be run as: memory, time and rows kept, and stop");
  app->add_option("--memory", flags->options.plan_memory_bytes,
                  "With --plan: bytes of memory that a rank may take, 900MiB, 8GiB")
      ->type_name("BYTES")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/false))
      ->check(CLI::PositiveNumber.description(""));
  app->add_option("--plan-options", flags->options.plan_options,
                  "With --plan: bounds, preference and known rates, a PlanOptions in JSON")
      ->type_name("FILE");
  app->add_flag("--json", flags->options.json,
                "With --plan: print a PlanResult in JSON instead of the table");
  app->add_option("--preview-data", flags->options.preview_rows,
                  "Print the first N rows with the trained tokens marked, and stop")
      ->type_name("N")
      ->check(CLI::Range(1, 1000000).description(""));
  app->add_option("--resume", flags->options.resume,
                  "Go on from the newest whole checkpoint of output.dir, or from this one")
      ->type_name("auto|PATH");
  app->add_option("--device", flags->options.device, "Where to run: auto, cpu, cuda, cuda:N")
      ->type_name("D");
  app->add_option(
         "--events", flags->options.events,
         "What to print: pretty (for people), json (one object a line), fd:N (delimited protobuf)")
      ->type_name("pretty|json|fd:N")
      ->capture_default_str();
  app->set_version_flag("--version", version, "Print the version, and stop");
  app->set_help_flag("-h,--help", "Print this text, and stop");

  CLI::App* calibrate = app->add_subcommand(kCalibrateName, kCalibrateDescription);
  calibrate->footer(kCalibrateFooter);
  calibrate->allow_extras();
  calibrate
      ->add_option("--rates", flags->options.rates_file,
                   "The file that keeps rates. Default: $LEMO_RATES, or lemo/rates.json in "
                   "$XDG_CACHE_HOME or ~/.cache")
      ->type_name("FILE");
  calibrate
      ->add_option("--seconds", flags->options.calibrate_seconds,
                   "For how long; less makes the rates less steady")
      ->type_name("S")
      ->check(CLI::Range(0.0, 3600.0).description(""))
      ->capture_default_str();
  calibrate->add_option("--device", flags->options.device, "Which one: auto, cpu, cuda, cuda:N")
      ->type_name("D");
  calibrate
      ->add_option("--compute-type", flags->options.compute_type,
                   "As model.compute_type of a run spec")
      ->type_name("T")
      ->capture_default_str();
  calibrate->add_flag("--json", flags->options.json,
                      "Print the DeviceRates in JSON instead of a table");
  calibrate->set_help_flag("-h,--help", "Print this text, and stop");
  return app;
}

std::vector<std::string> FlagsOf(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

CommandLine Leave(int exit_code, std::string text) {
  CommandLine out;
  out.exit = true;
  out.exit_code = exit_code;
  out.text = std::move(text);
  return out;
}

CommandLine Mistake(const std::string& what) {
  return Leave(2, absl::StrCat("lemo-train: ", what, "\nRun lemo-train --help for the options.\n"));
}

}  // namespace

CommandLine ParseCommandLine(const std::vector<std::string>& args, const std::string& version) {
  Flags flags;
  const std::unique_ptr<CLI::App> app = MakeApp(version, &flags);
  try {
    app->parse(std::vector<std::string>(args.rbegin(), args.rend()));
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() != 0) return Mistake(error.what());
    std::ostringstream out, ignored;
    app->exit(error, out, ignored);
    return Leave(0, out.str());
  }
  const bool calibrates = app->got_subcommand(kCalibrateName);
  const CLI::App& taken = calibrates ? *app->get_subcommand(kCalibrateName) : *app;
  for (const std::string& extra : app->remaining(/*recurse=*/true)) {
    if (extra.substr(0, 1) != "-") continue;
    const std::string name = extra.substr(0, extra.find('='));
    const std::string nearest = NearestName(name, FlagsOf(taken));
    return Mistake(
        absl::StrCat("unknown option ", name,
                     nearest.empty() ? "" : absl::StrCat("; did you mean ", nearest, "?")));
  }
  if (const std::vector<std::string> extras = app->remaining(/*recurse=*/true); !extras.empty()) {
    return Mistake(absl::StrCat("unexpected argument \"", extras.front(), "\""));
  }
  if (calibrates) {
    // What stands before the word is of a run.
    for (const CLI::Option* option : app->get_options()) {
      if (option->count() > 0) {
        return Mistake(absl::StrCat(option->get_name(), " is for runs, not for calibrate"));
      }
    }
    CommandLine out;
    out.options = std::move(flags.options);
    out.options.mode = RunOptions::Mode::kCalibrate;
    return out;
  }
  if (!flags.positional_spec.empty() && !flags.flag_spec.empty()) {
    return Mistake(absl::StrCat("two run specs, ", flags.positional_spec, " and ", flags.flag_spec,
                                "; give one"));
  }
  CommandLine out;
  out.options = std::move(flags.options);
  out.options.spec_file = flags.flag_spec.empty() ? flags.positional_spec : flags.flag_spec;
  if (out.options.spec_file.empty())
    return Mistake("no run spec; give its file, lemo-train run.json");
  const int modes = flags.validate + flags.print_spec + flags.eval_only + flags.plan +
                    (out.options.preview_rows > 0 ? 1 : 0);
  if (modes > 1) {
    return Mistake(
        "--validate, --print-spec, --eval-only, --plan and --preview-data exclude each other");
  }
  if (out.options.plan_memory_bytes > 0 && !flags.plan) {
    return Mistake("--memory is for --plan; what a run keeps is in its spec, memory.policy");
  }
  if ((out.options.json || !out.options.plan_options.empty()) && !flags.plan) {
    return Mistake("--json and --plan-options are for --plan");
  }
  using Mode = RunOptions::Mode;
  out.options.mode = flags.validate                 ? Mode::kValidate
                     : flags.print_spec             ? Mode::kPrintSpec
                     : flags.eval_only              ? Mode::kEvalOnly
                     : flags.plan                   ? Mode::kPlan
                     : out.options.preview_rows > 0 ? Mode::kPreviewData
                                                    : Mode::kTrain;
  return out;
}

std::vector<std::string> CommandLineFlags() {
  Flags flags;
  return FlagsOf(*MakeApp("", &flags));
}

std::vector<std::string> CalibrateFlags() {
  Flags flags;
  return FlagsOf(*MakeApp("", &flags)->get_subcommand(kCalibrateName));
}

lemo::v1::RunSpec LoadRunSpec(const RunOptions& options, Violations* violations) {
  absl::StatusOr<std::string> text = ReadFile(options.spec_file, kMaxSpecBytes);
  if (!text.ok()) {
    violations->Add(
        Violation{.reason = std::string(text.status().message()), .file = options.spec_file});
    return {};
  }
  lemo::v1::RunSpec spec = ParseRunSpec(*text, options.spec_file, violations);
  ApplyOverrides(options.overrides, &spec, violations);
  if (!options.device.empty()) spec.set_device(options.device);
  FillDefaults(&spec);
  auto is_faulty = [faults = violations->kept()](const std::string& field) {
    return std::any_of(faults.begin(), faults.end(),
                       [&](const Violation& fault) { return fault.field == field; });
  };
  // Without a JSON object everything would be missing.
  if (is_faulty("")) return spec;
  Violations invalid;
  ValidateRunSpec(spec, &invalid, {.eval_only = options.mode == RunOptions::Mode::kEvalOnly});
  for (const Violation& fault : invalid.kept()) {
    // What could not be read is not missing.
    if (!is_faulty(fault.field)) violations->Add(fault);
  }
  return spec;
}

lemo::v1::PlanOptions LoadPlanOptions(const RunOptions& options, Violations* violations) {
  lemo::v1::PlanOptions plan;
  const std::string& file = options.plan_options;
  if (file.empty()) return plan;
  const absl::StatusOr<std::string> text = ReadFile(file, kMaxSpecBytes);
  if (!text.ok()) {
    violations->Add(Violation{.reason = std::string(text.status().message()), .file = file});
    return plan;
  }
  JsonFault fault;
  const std::optional<LocatedJson> root = ParseLocatedJson(*text, &fault);
  if (!root) {
    violations->Add(Violation{.reason = fault.reason, .file = file, .line = fault.line});
    return plan;
  }
  MessageReader(file, lemo::v1::PlanOptions::descriptor(), violations)
      .ReadMessage(*root, "", &plan);
  return plan;
}

}  // namespace lemo::train
