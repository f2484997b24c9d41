// lemo-control-plane-bench: what the service does, beside what it is to reach. See README.md.
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <iostream>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "bench/control_plane/measures.h"
#include "common/files.h"

namespace lemo::bench {
namespace {

namespace fs = std::filesystem;

struct Part {
  std::string name;
  absl::StatusOr<std::vector<Figure>> (*measure)(const Settings&);
};

const std::vector<Part> kParts = {{"start", MeasureStart},
                                  {"submissions", MeasureSubmissions},
                                  {"watchers", MeasureWatchers},
                                  {"list", MeasureLongList},
                                  {"runs", MeasureRuns}};

struct Options {
  Settings settings;
  std::vector<std::string> parts;
  std::string scratch, results, commit, command;
};

std::string Report(const nlohmann::ordered_json& about, const std::vector<Figure>& figures) {
  const nlohmann::ordered_json& machine = about["machine"];
  return absl::StrCat(
      "# Control plane, ", about["date"].get<std::string>(), "\n\n",
      machine["processor"].get<std::string>(), ", ", machine["cores"].dump(), " cores, ",
      machine["memory_gib"].dump(), " GiB, Linux ", machine["kernel"].get<std::string>(),
      ", commit ", about["commit"].get<std::string>(),
      "; load before: ", machine["load_before"].get<std::string>(), "; ", about["seconds"].dump(),
      " s.\n\n    ", about["command"].get<std::string>(), "\n\n", Table(figures), R"(
Real `lemo-coordinator` and `lemo-worker` with default options and real `lemo-train` processes; clients and fake
agents share the machine with them, in one process. The database lies on the machine's own disk, every
acknowledged write is synced. bench/control_plane/README.md says how each line is measured.

What this does not show: a network, TLS, several machines, a disk that is slow to sync.
)");
}

// Answers where it was stored.
fs::path Store(const Options& options, const nlohmann::ordered_json& about,
               const std::vector<Figure>& figures, const std::string& report) {
  const std::string stem = about["date"].get<std::string>() + "-control-plane";
  fs::path path = fs::path(options.results) / (stem + ".json");
  for (int number = 2; fs::exists(path); ++number) {
    path.replace_filename(absl::StrCat(stem, "-", number, ".json"));
  }
  nlohmann::ordered_json all = about;
  all["figures"] = ToJson(figures);
  for (const auto& [file, text] : {std::pair{path, all.dump(1) + "\n"},
                                   std::pair{fs::path(path).replace_extension(".md"), report}}) {
    if (const absl::Status written = WriteFileAtomic(file, text); !written.ok()) {
      std::cerr << written.message() << "\n";
    }
  }
  return path;
}

int Main(int argc, char** argv) {
  Options options;
  std::string model;
  CLI::App app("Measures the control plane against its goals.", "lemo-control-plane-bench");
  app.add_option("--coordinator", options.settings.coordinator)->required();
  app.add_option("--worker", options.settings.worker)->required();
  app.add_option("--train", options.settings.train)->required();
  app.add_option("--model", model, "A small Hugging Face model directory")->required();
  app.add_flag("--quick", options.settings.quick, "Small sizes: does it run? Stores nothing");
  app.add_option("--parts", options.parts, "start, submissions, watchers, list, runs (all)")
      ->delimiter(',')
      ->check(CLI::IsMember({"start", "submissions", "watchers", "list", "runs"}));
  app.add_option("--scratch", options.scratch,
                 "Where databases and runs lie meanwhile; on a real disk, for the sake of syncs")
      ->required();
  app.add_option("--results", options.results, "Where results are stored");
  app.add_option("--commit", options.commit);
  app.add_option("--command", options.command, "What the result says that it was made with");
  CLI11_PARSE(app, argc, argv);
  ::signal(SIGPIPE, SIG_IGN);

  Settings& settings = options.settings;
  settings.model = fs::canonical(model);
  settings.scratch = fs::absolute(options.scratch) / absl::StrCat("control-plane-", ::getpid());
  fs::create_directories(settings.scratch);
  const absl::Time begin = absl::Now();
  nlohmann::ordered_json about = {
      {"date", absl::FormatTime("%Y-%m-%d", begin, absl::LocalTimeZone())},
      {"commit", options.commit},
      {"command", options.command},
      {"machine", DescribeMachine()}};

  std::vector<Figure> figures;
  bool failed = false;
  for (const Part& part : kParts) {
    if (!options.parts.empty() &&
        std::find(options.parts.begin(), options.parts.end(), part.name) == options.parts.end()) {
      continue;
    }
    std::cerr << "measuring " << part.name << "..." << std::endl;
    absl::StatusOr<std::vector<Figure>> measured = part.measure(settings);
    if (!measured.ok()) {
      std::cerr << part.name << ": " << measured.status().ToString() << "\n";
      failed = true;
      continue;
    }
    for (Figure& figure : *measured) figures.push_back(std::move(figure));
  }
  about["seconds"] = static_cast<int>(absl::ToDoubleSeconds(absl::Now() - begin));
  const std::string report = Report(about, figures);
  std::cout << report;
  if (failed) {
    std::cerr << "logs are in " << settings.scratch.string() << "\n";
    return 1;
  }
  fs::remove_all(settings.scratch);
  if (!settings.quick && !options.results.empty()) {
    std::cerr << "stored " << Store(options, about, figures, report).string() << " and .md\n";
  }
  return 0;
}

}  // namespace
}  // namespace lemo::bench

int main(int argc, char** argv) { return lemo::bench::Main(argc, argv); }
