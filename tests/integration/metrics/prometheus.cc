#include "tests/integration/metrics/prometheus.h"

#include <gtest/gtest.h>

#include <chrono>
#include <csignal>
#include <fstream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "tests/support/http_get.h"

namespace lemo::metrics {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::minutes kPatience{1};
constexpr std::chrono::milliseconds kPause{50};

// Percent-encodes everything but letters and digits.
std::string Encode(const std::string& text) {
  std::string encoded;
  for (const unsigned char c : text) {
    if (std::isalnum(c)) {
      encoded += static_cast<char>(c);
    } else {
      absl::StrAppend(&encoded, "%", absl::Hex(c, absl::kZeroPad2));
    }
  }
  return encoded;
}

}  // namespace

Prometheus::Prometheus(const std::filesystem::path& directory, const std::string& coordinator,
                       const std::string& worker) {
  std::filesystem::create_directories(directory);
  std::ofstream(directory / "prometheus.yml")
      << "global: {scrape_interval: 1s}\n"
      << "rule_files: [" << LEMO_SOURCE_DIR << "/deploy/prometheus/alerts.yml]\n"
      << "scrape_configs:\n"
      << "  - job_name: lemo-coordinator\n    static_configs: [{targets: ['" << coordinator
      << "']}]\n"
      << "  - job_name: lemo-worker\n    static_configs: [{targets: ['" << worker << "']}]\n";
  process_ = std::make_unique<train::Process>(
      LEMO_PROMETHEUS,
      std::vector<std::string>{"--config.file", (directory / "prometheus.yml").string(),
                               "--storage.tsdb.path", (directory / "data").string(),
                               "--web.listen-address", "127.0.0.1:0"},
      train::ProcessOptions{directory, {}, {}});
  // Only its log tells the port.
  const std::string kSays = "msg=\"Listening on\" address=";
  const auto deadline = Clock::now() + kPatience;
  while (address_.empty() && Clock::now() < deadline) {
    const std::string log = Log();
    const size_t at = log.find(kSays);
    const size_t end = at == std::string::npos ? at : log.find('\n', at);
    if (end != std::string::npos) {
      address_ = log.substr(at + kSays.size(), end - at - kSays.size());
    } else {
      std::this_thread::sleep_for(kPause);
    }
  }
  EXPECT_NE(address_, "") << "prometheus did not start: " << Log();
}

nlohmann::json Prometheus::Query(const std::string& promql) {
  const auto answer = lemo::testing::HttpGet(address_, "/api/v1/query?query=" + Encode(promql));
  const auto parsed = nlohmann::json::parse(answer.body, nullptr, /*allow_exceptions=*/false);
  // 503 while it gets ready.
  if (answer.status != 200 || parsed.is_discarded()) return nlohmann::json::array();
  return parsed.at("data").at("result");
}

nlohmann::json Prometheus::Await(const std::string& promql) {
  const auto deadline = Clock::now() + kPatience;
  for (;;) {
    nlohmann::json result = Query(promql);
    if (!result.empty() || Clock::now() > deadline) return result;
    std::this_thread::sleep_for(kPause);
  }
}

int Prometheus::Stop() {
  process_->Signal(SIGTERM);
  return process_->Wait();
}

void ExpectPromtoolIsContent(const std::filesystem::path& directory,
                             const std::vector<std::string>& args) {
  std::string command = std::string("'") + LEMO_PROMTOOL + "'";
  for (const std::string& arg : args) absl::StrAppend(&command, " '", arg, "'");
  // check metrics reads its standard input.
  const std::string script = command + " < page.txt 2>&1";
  train::Process promtool("/bin/sh", {"-c", script}, train::ProcessOptions{directory, {}, {}});
  std::string said;
  while (const auto line = promtool.NextLine(Clock::now() + kPatience)) {
    absl::StrAppend(&said, *line, "\n");
  }
  EXPECT_EQ(promtool.Wait(), 0) << command << "\n" << said;
}

}  // namespace lemo::metrics
