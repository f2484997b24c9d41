// Any bytes as a job spec, in JSON and in YAML, through what the command line reads and what
// SubmitJob checks: answered or refused in bounded time, never a crash.
//  - What was read without a fault prints and reads back the same, from JSON and from YAML.
//  - JSON that is accepted says the same as YAML.
//  - Faults are UTF-8 and short, so that they can be sent; the checks of the API find the same ones
//  twice.
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "cli/spec_file.h"
#include "cli/yaml_json.h"
#include "common/message_json.h"
#include "coordinator/api/job_checks.h"
#include "google/protobuf/stubs/logging.h"
#include "nlohmann/json.hpp"

namespace {

using lemo::Violations;
using lemo::v1::JobSpec;

// Of processor time, for an input of 8 KiB under a sanitiser.
constexpr double kMostSeconds = 10;
constexpr int64_t kMostBytes = int64_t{2} << 30;
constexpr size_t kLongestFault = 4000;

void Require(bool condition, const std::string& what) {
  if (condition) return;
  std::fprintf(stderr, "broken: %s\n", what.c_str());
  std::abort();
}

void CheckFaults(const Violations& violations) {
  for (const lemo::Violation& violation : violations.kept()) {
    const std::string shown = absl::CHexEscape(violation.ToString());
    Require(lemo::IsUtf8(violation.ToString()), "a fault is not UTF-8: " + shown);
    Require(lemo::IsUtf8(violation.field) && lemo::IsUtf8(violation.reason),
            "a part is not UTF-8: " + shown);
    Require(violation.ToString().size() < kLongestFault, "a fault is too long to read");
  }
}

struct Read {
  JobSpec spec;
  bool good = false;
};

Read Parse(const std::string& text, const std::string& file) {
  Read read;
  Violations violations;
  std::vector<std::string> notes;
  read.spec = lemo::cli::ParseJobSpec({text, file}, {}, &violations, &notes);
  read.good = violations.empty();
  CheckFaults(violations);
  return read;
}

std::string Printed(const JobSpec& spec) { return lemo::MessageToJson(spec, {}).dump(); }

void CheckReadsBack(const JobSpec& spec) {
  const nlohmann::ordered_json json = lemo::MessageToJson(spec, {});
  // A spec that sets nothing prints as {}, and what has only fields of a run is taken for a run.
  const Read from_json = Parse(json.dump(), "printed.json");
  Require(from_json.good, "what was printed as JSON is refused");
  Require(Printed(from_json.spec) == json.dump(), "what was printed as JSON reads back different");
  const Read from_yaml = Parse(lemo::cli::ToYaml(json), "printed.yaml");
  Require(from_yaml.good, "what was printed as YAML is refused");
  Require(Printed(from_yaml.spec) == json.dump(), "what was printed as YAML reads back different");
}

// A store that knows one file and one model.
lemo::coordinator::Store* SmallStore() {
  static const auto* scratch =
      new std::filesystem::path(std::filesystem::temp_directory_path() /
                                ("lemo_job_spec_fuzz_" + std::to_string(::getpid())));
  static std::unique_ptr<lemo::coordinator::Store>* store = [] {
    std::filesystem::create_directories(*scratch);
    auto opened = lemo::coordinator::OpenSqliteStore((*scratch / "lemo.db").string());
    Require(opened.ok(), "the store opens");
    lemo::v1::File file;
    file.set_name("files/a");
    file.set_sha256(std::string(64, 'a'));
    file.set_bytes(1);
    lemo::v1::Model model;
    model.set_name("models/m");
    model.set_path("/m");
    lemo::v1::ModelFile& part = *model.add_files();
    part.set_path("config.json");
    Require((*opened)->CreateFile(file, "").ok() && (*opened)->CreateModel(model).ok(),
            "the store takes a file and a model");
    std::atexit([] {
      store->reset();
      std::error_code ignored;
      std::filesystem::remove_all(*scratch, ignored);
    });
    return new std::unique_ptr<lemo::coordinator::Store>(*std::move(opened));
  }();
  return store->get();
}

void CheckAsSubmitted(const JobSpec& spec) {
  lemo::coordinator::JobRecord record, again;
  Violations violations, same;
  Require(lemo::coordinator::CheckJobSpec(spec, SmallStore(), &record, &violations).ok(),
          "the checks need no more than the store");
  CheckFaults(violations);
  Require(lemo::coordinator::CheckJobSpec(spec, SmallStore(), &again, &same).ok() &&
              same.ToStatus() == violations.ToStatus(),
          "the checks find other faults the second time");
  if (!violations.empty()) return;
  Require(record.model_path == "/m", "an accepted job has a model");
  Require(record.files.size() == 1, "an accepted job has each file once");
  Require(spec.run().output().dir().empty() && !spec.run().has_device(),
          "an accepted job leaves the service what is the service's");
}

double CpuSeconds() {
  timespec time{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const double begin = CpuSeconds();
  // Bytes that are no message are part of the game, and no news.
  google::protobuf::SetLogHandler(nullptr);
  const std::string text(reinterpret_cast<const char*>(data), size);
  const Read json = Parse(text, "fuzz.json");
  const Read yaml = Parse(text, "fuzz.yaml");
  for (const Read* read : {&json, &yaml}) {
    CheckAsSubmitted(read->spec);
    if (read->good) CheckReadsBack(read->spec);
  }
  if (json.good) {
    const std::string as_yaml = lemo::cli::ToYaml(nlohmann::ordered_json::parse(text));
    const Read same = Parse(as_yaml, "same.yaml");
    Require(same.good, "accepted JSON is refused as YAML");
    Require(Printed(same.spec) == Printed(json.spec), "JSON and YAML of one value differ");
  }
  JobSpec raw;  // as a client of its own makes it
  if (raw.ParseFromString(text)) CheckAsSubmitted(raw);

  Require(CpuSeconds() - begin < kMostSeconds, "an input takes too long");
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  Require(usage.ru_maxrss * 1024 < kMostBytes, "an input takes too much memory");
  return 0;
}
