// Debian's Prometheus, as a child process.
#pragma once

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/e2e/train/process.h"

namespace lemo::metrics {

class Prometheus {
 public:
  // Scrapes both addresses every second, as jobs `lemo-coordinator` and `lemo-worker`, and knows
  // our alerts. Keeps its data in `directory`.
  Prometheus(const std::filesystem::path& directory, const std::string& coordinator,
             const std::string& worker);

  // The result of an instant query, `[]` when there is no series or no answer.
  nlohmann::json Query(const std::string& promql);
  // Asks until there is a series; `[]` after a minute.
  nlohmann::json Await(const std::string& promql);
  // SIGTERM; its exit code.
  int Stop();
  std::string Log() { return process_->Errors(); }

 private:
  std::unique_ptr<train::Process> process_;
  std::string address_;
};

// `promtool ARGS`; fails the test with what it says unless it is content.
void ExpectPromtoolIsContent(const std::filesystem::path& directory,
                             const std::vector<std::string>& args);

}  // namespace lemo::metrics
